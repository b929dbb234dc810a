// The oracle of the software CPU's differential test: a static arm64 program that runs under QEMU user mode.
//
// It reads batches of cases on stdin and writes what the processor made of them on stdout. Every stop of a case is a
// signal (BRK behind the tested words, or a fault): the handler stores the interrupted registers as the result and
// rewrites the signal frame with the next case's registers, so that one signal per case does all the work and no
// register needs to be spared. There is no C library: nothing here uses the thread pointer, which cases overwrite.
//
// The record layouts and the addresses are those of src/softcpu/tests/differential/state.rs.
//
// Build: aarch64-linux-gnu-gcc -O2 -nostdlib -static -ffreestanding -Wl,-Ttext-segment=0x5a5a5a0000 oracle.c

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

enum {
    MAGIC = 0x4d56444f, // first word of every batch
    CODE_WORDS = 4,
    SLOT_BYTES = 256, // a case's code stands in the middle of a slot, between BRK instructions
    MAX_CASES = 1024,
    BRK = 0xd4200000,

    SIGILL = 4, SIGTRAP = 5, SIGBUS = 7, SIGSEGV = 11,
    FPSIMD_MAGIC = 0x46508001,

    READ = 1, WRITE = 2, EXEC = 4,
};

#define CODE_BASE 0x1234500000ul
#define CODE_BYTES ((u64)SLOT_BYTES * MAX_CASES)
#define DATA_BASE 0x1234580000ul // two writable pages, then a hole
#define READ_ONLY_BASE 0x1234583000ul
#define PAGE 0x1000ul

// The windows of memory that belong to a case: the middle and the end of the writable pages, and the read-only page.
#define WINDOW_MIDDLE (DATA_BASE + PAGE - 256)
#define WINDOW_END (DATA_BASE + 2 * PAGE - 256)
#define WINDOW_READ_ONLY READ_ONLY_BASE

struct state {
    u64 x[31];
    u64 sp, pc, nzcv, tpidr;
    u32 fpcr, fpsr;
    u64 v[64];
    u64 middle[64];
    u64 end[32];
    u64 read_only[32];
};

struct input {
    struct state state;
    u32 code[CODE_WORDS];
};

struct output {
    struct state state;
    u32 signal, signal_code;
    u64 address;
};

struct fpsimd {
    u32 magic, size, fpsr, fpcr;
    u64 v[64];
};

// The parts of Linux's siginfo_t and ucontext_t for arm64 that are used here.
struct info {
    u32 signal, error, code, pad;
    u64 address;
};

struct context {
    u64 flags, link;
    u64 stack_pointer, stack_flags, stack_size;
    u64 mask[16];
    u64 pad_to_16;
    u64 fault_address;
    u64 x[31];
    u64 sp, pc, pstate;
    u64 pad_to_16_again;
    u8 records[4096];
};

static struct input inputs[MAX_CASES];
static struct output outputs[MAX_CASES];
static u8 signal_stack[65536] __attribute__((aligned(16)));
static u64 read_only_alias;
static u32 count;
static u32 current;
static int running;
static struct context main_context;
static struct fpsimd main_fpsimd;

static long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}

static void leave(int status)
{
    for (;;)
        syscall6(94, status, 0, 0, 0, 0, 0);
}

static void copy(u64 *to, const u64 *from, u32 words)
{
    for (u32 i = 0; i < words; i++)
        to[i] = from[i];
}

// Reads exactly `bytes`; returns 0 when the input ends before the first one.
static int read_all(void *to, u64 bytes)
{
    u64 done = 0;
    while (done < bytes) {
        long got = syscall6(63, 0, (long)to + done, bytes - done, 0, 0, 0);
        if (got == 0 && done == 0)
            return 0;
        if (got <= 0)
            leave(3);
        done += got;
    }
    return 1;
}

static void write_all(const void *from, u64 bytes)
{
    u64 done = 0;
    while (done < bytes) {
        long put = syscall6(64, 1, (long)from + done, bytes - done, 0, 0, 0);
        if (put <= 0)
            leave(4);
        done += put;
    }
}

static struct fpsimd *fpsimd_of(struct context *context)
{
    u8 *record = context->records;
    while (((struct fpsimd *)record)->magic != FPSIMD_MAGIC) {
        if (((struct fpsimd *)record)->size == 0)
            leave(5);
        record += ((struct fpsimd *)record)->size;
    }
    return (struct fpsimd *)record;
}

static void save(struct output *out, struct context *context, struct info *info)
{
    struct fpsimd *fpsimd = fpsimd_of(context);
    struct state *state = &out->state;
    copy(state->x, context->x, 31);
    state->sp = context->sp;
    state->pc = context->pc;
    state->nzcv = context->pstate & 0xf0000000;
    __asm__ volatile("mrs %0, tpidr_el0" : "=r"(state->tpidr));
    state->fpcr = fpsimd->fpcr;
    state->fpsr = fpsimd->fpsr;
    copy(state->v, fpsimd->v, 64);
    copy(state->middle, (u64 *)WINDOW_MIDDLE, 64);
    copy(state->end, (u64 *)WINDOW_END, 32);
    copy(state->read_only, (u64 *)WINDOW_READ_ONLY, 32);
    // QEMU 10 remembers FPCR.NEP from the MSR that set it, whatever the signal frame says.
    __asm__ volatile("msr fpcr, xzr");
    out->signal = info->signal;
    out->signal_code = info->code;
    out->address = info->signal == SIGTRAP ? 0 : info->address;
}

static void load(const struct input *in, struct context *context)
{
    struct fpsimd *fpsimd = fpsimd_of(context);
    const struct state *state = &in->state;
    copy(context->x, state->x, 31);
    context->sp = state->sp;
    context->pc = state->pc;
    context->pstate = state->nzcv; // EL0t, and no branch type left over from the case before
    __asm__ volatile("msr tpidr_el0, %0" : : "r"(state->tpidr));
    fpsimd->fpcr = state->fpcr;
    fpsimd->fpsr = state->fpsr;
    copy(fpsimd->v, state->v, 64);
    copy((u64 *)WINDOW_MIDDLE, state->middle, 64);
    copy((u64 *)WINDOW_END, state->end, 32);
    copy((u64 *)read_only_alias, state->read_only, 32);
}

static void handle(int signal, struct info *info, struct context *context)
{
    (void)signal;
    if (!running) {
        // The BRK in run(): keep the way back, and start.
        if (info->signal != SIGTRAP)
            leave(6);
        copy(main_context.x, context->x, 31);
        main_context.sp = context->sp;
        main_context.pc = context->pc + 4;
        main_context.pstate = context->pstate;
        copy((u64 *)&main_fpsimd, (u64 *)fpsimd_of(context), sizeof(main_fpsimd) / 8);
        running = 1;
        current = 0;
        load(&inputs[0], context);
        return;
    }
    save(&outputs[current], context, info);
    current += 1;
    if (current < count) {
        load(&inputs[current], context);
        return;
    }
    running = 0;
    copy(context->x, main_context.x, 31);
    context->sp = main_context.sp;
    context->pc = main_context.pc;
    context->pstate = main_context.pstate;
    copy((u64 *)fpsimd_of(context), (u64 *)&main_fpsimd, sizeof(main_fpsimd) / 8);
}

__asm__(".globl restore\nrestore:\n mov x8, #139\n svc #0\n");
extern void restore(void);

static void map(u64 address, u64 bytes, int protection, int flags, long file)
{
    // MAP_FIXED
    if (syscall6(222, address, bytes, protection, flags | 0x10, file, 0) != (long)address)
        leave(7);
}

static void set_up(void)
{
    enum { SHARED = 1, PRIVATE = 2, ANONYMOUS = 0x20 };
    map(CODE_BASE, CODE_BYTES, READ | WRITE, PRIVATE | ANONYMOUS, -1);
    map(DATA_BASE, 2 * PAGE, READ | WRITE, PRIVATE | ANONYMOUS, -1);
    long file = syscall6(279, (long)"read-only", 0, 0, 0, 0, 0);
    if (file < 0 || syscall6(46, file, PAGE, 0, 0, 0, 0) != 0)
        leave(8);
    map(READ_ONLY_BASE, PAGE, READ, SHARED, file);
    long alias = syscall6(222, 0, PAGE, READ | WRITE, SHARED, file, 0);
    if (alias < 0 && alias > -4096)
        leave(8);
    read_only_alias = alias;

    u32 *code = (u32 *)CODE_BASE;
    for (u64 i = 0; i < CODE_BYTES / 4; i++)
        code[i] = BRK;

    u64 stack[3] = { (u64)signal_stack, 0, sizeof(signal_stack) };
    if (syscall6(132, (long)stack, 0, 0, 0, 0, 0) != 0)
        leave(9);
    // SA_SIGINFO | SA_RESTORER | SA_ONSTACK
    u64 action[4] = { (u64)handle, 0x0c000004, (u64)restore, 0 };
    static const int signals[] = { SIGILL, SIGTRAP, SIGBUS, SIGSEGV };
    for (int i = 0; i < 4; i++) {
        if (syscall6(134, signals[i], (long)action, 0, 8, 0, 0) != 0)
            leave(9);
    }
}

// Makes the code window writable, or executable: never both at once, as code generators do.
static void protect_code(int protection)
{
    if (syscall6(226, CODE_BASE, CODE_BYTES, protection, 0, 0, 0) != 0)
        leave(7);
}

static void run(void)
{
    protect_code(READ | WRITE);
    for (u32 i = 0; i < count; i++) {
        u32 *code = (u32 *)inputs[i].state.pc;
        for (int j = 0; j < CODE_WORDS; j++)
            code[j] = inputs[i].code[j];
        // The words of one case lie in one line of every cache.
        __asm__ volatile("dc cvau, %0\n dsb ish\n ic ivau, %0" : : "r"(code) : "memory");
    }
    protect_code(READ | EXEC);
    __asm__ volatile("dsb ish\n isb" : : : "memory");
    __asm__ volatile("brk #1" : : : "memory");
}

void _start(void)
{
    set_up();
    u32 header[2];
    while (read_all(header, sizeof(header))) {
        count = header[1];
        if (header[0] != MAGIC || count == 0 || count > MAX_CASES)
            leave(2);
        if (!read_all(inputs, count * sizeof(inputs[0])))
            leave(3);
        run();
        write_all(outputs, count * sizeof(outputs[0]));
    }
    leave(0);
}
