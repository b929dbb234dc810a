//! `cargo bench --bench boot`: the same kernel and initramfs on minivmm and on QEMU's TCG, alternately, in one run.
//!
//! Prints medians and ratios for booting to power-off and for jobs in the guest, with the translating CPU and for some with the interpreting
//! one; then what minivmm alone is asked for: time to the first guest instruction, host memory beyond guest RAM, host CPU time of an idle guest.
//!
//! Needs `qemu-system-aarch64` and `aarch64-linux-gnu-gcc` (with its C library) on the PATH, the `shell` bundle (fetched if missing) and
//! a Debian mirror for the programs of `packages`. `MINIVMM_BENCH_RUNS` sets the number of runs (5), `MINIVMM_BENCH_QEMU` the QEMU to
//! compare with, `MINIVMM_BENCH_CASES` a comma-separated choice of cases by their word.

#[path = "../measuring/mod.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod measuring;
mod packages;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use measuring::{Result, median, number, shell_bundle, version};
use minivmm_firmware::bundle::cpio::Archive;

const MINIVMM: &str = env!("CARGO_BIN_EXE_minivmm");
const MEMORY_MIB: u64 = 512;
/// A run that takes longer is broken.
const LONGEST_RUN: Duration = Duration::from_secs(300);
/// How long the idle guest is watched.
const IDLE_SECONDS: u64 = 3;

/// PID 1 of the benchmark guest.
const INIT: &str = include_str!("init");
const FLOAT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/boot/float.c");

fn main() -> Result<()> {
    let runs = number("MINIVMM_BENCH_RUNS", 5);
    let chosen = std::env::var("MINIVMM_BENCH_CASES").ok();
    let is_chosen =
        |word: &str| chosen.as_ref().is_none_or(|chosen| chosen.split(',').any(|one| one == word.replace(' ', "-")));
    let directory = tempfile::tempdir()?;
    let guest = Guest::prepare(directory.path())?;
    let qemu = std::env::var("MINIVMM_BENCH_QEMU").unwrap_or_else(|_| "qemu-system-aarch64".into());
    let version = version(&qemu)?;
    println!("{runs} runs each, alternating; peer: {version}, -accel tcg,thread=multi -cpu cortex-a72\n");
    println!("| case | minivmm | QEMU TCG | ratio | minivmm, interpreting | ratio |\n|---|---|---|---|---|---|");
    let mut ratios = Vec::new();
    for case in CASES.iter().filter(|case| is_chosen(case.word)) {
        let (mut ours, mut theirs, mut slow) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs {
            ours.push(guest.run(&TRANSLATING, case)?);
            theirs.push(guest.run(&Vmm::Qemu(&qemu), case)?);
            if case.interpreted {
                slow.push(guest.run(&INTERPRETING, case)?);
            }
        }
        let (ours, theirs) = (median(&mut ours), median(&mut theirs));
        let unit = if case.kind == Kind::Rate { "µs each" } else { "s" };
        print!("| {} | {ours:.2} {unit} | {theirs:.2} {unit} | {:.2} |", case.name, ours / theirs);
        if case.interpreted {
            let slow = median(&mut slow);
            println!(" {slow:.2} s | {:.2} |", slow / theirs);
        } else {
            println!(" | |");
        }
        ratios.push(ours / theirs);
    }
    #[expect(clippy::cast_precision_loss, reason = "a handful of cases")]
    let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len().max(1) as f64).exp();
    println!("| geometric mean of these | | | {mean:.2} | | |");
    if is_chosen("scaling") {
        let (mut one, mut two, mut loops, mut beside) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs {
            one.push(guest.run(&TRANSLATING, &Case { cpus: 1, ..PAIR })?);
            two.push(guest.run(&TRANSLATING, &PAIR)?);
            loops.push(guest.run(&TRANSLATING, &LOOP)?);
            beside.push(guest.run_two(&TRANSLATING, &LOOP)?);
        }
        let scaling = median(&mut one) / median(&mut two);
        let host = 2.0 * median(&mut loops) / median(&mut beside);
        println!("| throughput of 2 vCPUs against 1, two loops | {scaling:.2} × | | | | |");
        println!("| the same of two machines with one vCPU each: what the host's cores give | {host:.2} × | | | | |");
    }
    if is_chosen("start") {
        let mut first: Vec<f64> = (0..runs).map(|_| guest.first_instruction()).collect::<Result<_>>()?;
        println!("| start of the process to the first guest instruction | {:.1} ms | | | | |", median(&mut first));
    }
    if is_chosen("idle") {
        let (memory, idle) = guest.idle()?;
        println!("| host memory beyond guest RAM | {memory:.1} MiB | | | | |");
        println!("| host CPU time of an idle guest | {idle:.2} % of a core | | | | |");
    }
    Ok(())
}

/// What is timed, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The whole process of the VMM: there is no job.
    Boot,
    /// A job, by the guest's clock.
    Job,
    /// A job that counts what it gets done.
    Rate,
}

/// A line of the table.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    cpus: u32,
    kind: Kind,
    /// Of the job.
    word: &'static str,
    /// The guest needs the programs of [`packages`].
    programs: bool,
    interpreted: bool,
}

const fn job(name: &'static str, word: &'static str) -> Case {
    Case { name, cpus: 1, kind: Kind::Job, word, programs: false, interpreted: false }
}

const fn boot(name: &'static str, cpus: u32, word: &'static str) -> Case {
    Case { cpus, kind: Kind::Boot, interpreted: true, ..job(name, word) }
}

const fn speed(name: &'static str, word: &'static str) -> Case {
    Case { kind: Kind::Rate, programs: true, ..job(name, word) }
}

const LOOP: Case = Case { interpreted: true, ..job("integer loop in the guest's shell", "loop") };
const PAIR: Case = Case { cpus: 2, ..job("two integer loops on 2 vCPUs", "pair") };

const CASES: [Case; 14] = [
    boot("boot to power-off, 1 vCPU", 1, "boot1"),
    boot("boot to power-off, 2 vCPUs", 2, "boot2"),
    LOOP,
    PAIR,
    job("sha256sum of 256 MiB", "hash"),
    job("gzip -9 of 32 MiB", "gzip"),
    job("floating point in awk", "awk"),
    job("sort of 150,000 numbers, twice", "sort"),
    job("floating point in C", "float"),
    speed("openssl speed, RSA-2048 signature", "rsa"),
    speed("openssl speed, AES-128-CBC of 8 KiB", "aes"),
    speed("openssl speed, SHA-256 of 8 KiB", "sha"),
    Case { programs: true, ..job("`docker version` and `docker --version`", "docker") },
    job("1,000 processes", "fork"),
];

/// An idle guest.
const IDLE: Case = Case { cpus: 2, ..job("", "idle") };

enum Vmm<'a> {
    /// With this `--cpu-tier`.
    Minivmm(&'a str),
    Qemu(&'a str),
}

const TRANSLATING: Vmm<'static> = Vmm::Minivmm("translate");
const INTERPRETING: Vmm<'static> = Vmm::Minivmm("interpret");

/// The files that both machines boot.
struct Guest {
    kernel: PathBuf,
    initrd: PathBuf,
    /// The same with the programs of [`packages`].
    initrd_with_programs: PathBuf,
    directory: PathBuf,
}

impl Guest {
    /// The bundle's kernel and initramfs, with our PID 1 added.
    fn prepare(directory: &Path) -> Result<Self> {
        let bundle = shell_bundle(MINIVMM)?;
        let mut archive = Archive::new();
        archive.file("bench", 0o755, INIT.as_bytes().to_vec());
        archive.file("float", 0o755, float(directory)?);
        let mut initrd = fs::read(bundle.join("initramfs"))?;
        append(&mut initrd, &archive)?;
        let file = directory.join("initramfs");
        fs::write(&file, &initrd)?;
        let mut archive = Archive::new();
        packages::add(&mut archive, &Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages"))?;
        append(&mut initrd, &archive)?;
        let initrd_with_programs = directory.join("initramfs-with-programs");
        fs::write(&initrd_with_programs, initrd)?;
        Ok(Self { kernel: bundle.join("kernel"), initrd: file, initrd_with_programs, directory: directory.to_owned() })
    }

    fn command(&self, vmm: &Vmm<'_>, case: &Case, console: &Path) -> Command {
        let cmdline = format!("console=ttyAMA0 quiet panic=-1 rdinit=/bench bench.{}", case.word);
        let cpus = case.cpus.to_string();
        let initrd = if case.programs { &self.initrd_with_programs } else { &self.initrd };
        let mut command = match vmm {
            Vmm::Minivmm(tier) => {
                let mut command = Command::new(MINIVMM);
                command.args(["boot", "--quiet", "--hypervisor", "soft", "--cpu-tier", tier, "--cpus", &cpus]);
                command.arg("--memory").arg(format!("{MEMORY_MIB}M"));
                command.arg("--cmdline").arg(cmdline).arg("--console").arg(format!("file={}", console.display()));
                command.arg("--kernel").arg(&self.kernel).arg("--initrd").arg(initrd);
                command
            }
            Vmm::Qemu(qemu) => {
                let mut command = Command::new(qemu);
                command.args(["-M", "virt,gic-version=3", "-cpu", "cortex-a72", "-accel", "tcg,thread=multi"]);
                command.args(["-m", &MEMORY_MIB.to_string(), "-smp", &cpus]);
                command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
                command.arg("-append").arg(cmdline).arg("-serial").arg(format!("file:{}", console.display()));
                command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(initrd);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn console(&self) -> PathBuf {
        self.directory.join("console")
    }

    /// Seconds, or microseconds an operation: see [`Kind`].
    fn run(&self, vmm: &Vmm<'_>, case: &Case) -> Result<f64> {
        Self::wait(self.command(vmm, case, &self.console()), case, &self.console())
    }

    /// The same of two machines that run side by side: the longer of their times.
    fn run_two(&self, vmm: &Vmm<'_>, case: &Case) -> Result<f64> {
        let consoles = [self.directory.join("console.0"), self.directory.join("console.1")];
        let commands = consoles.each_ref().map(|console| self.command(vmm, case, console));
        let time = |(command, console): (Command, &PathBuf)| {
            Self::wait(command, case, console).map_err(|error| error.to_string())
        };
        let times: std::result::Result<Vec<f64>, String> = std::thread::scope(|scope| {
            let runs: Vec<_> = commands.into_iter().zip(&consoles).map(|run| scope.spawn(move || time(run))).collect();
            runs.into_iter().map(|run| run.join().unwrap_or_else(|_| Err("a run panicked".into()))).collect()
        });
        Ok(times?.into_iter().fold(0.0, f64::max))
    }

    fn wait(mut command: Command, case: &Case, console: &Path) -> Result<f64> {
        let start = Instant::now();
        let mut child = command.spawn()?;
        while child.try_wait()?.is_none() {
            if start.elapsed() > LONGEST_RUN {
                child.kill()?;
                child.wait()?;
                return Err("a guest did not power off in time".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let wall = start.elapsed().as_secs_f64();
        let console = fs::read_to_string(console)?;
        let results = |mark: &str| -> Result<(f64, f64)> {
            let none = || format!("no result in: {console}");
            let mark = format!("{mark} {} ", case.word);
            let (_, numbers) = console.lines().find_map(|line| line.split_once(&mark)).ok_or_else(none)?;
            let (first, second) = numbers.trim().split_once(' ').ok_or_else(none)?;
            Ok((first.parse()?, second.parse()?))
        };
        Ok(match case.kind {
            Kind::Boot => wall,
            Kind::Job => results("BENCH").map(|(start, end)| end - start)?,
            Kind::Rate => results("RATE").map(|(operations, seconds)| seconds / operations * 1e6)?,
        })
    }

    /// Milliseconds from the start of the process to the first guest instruction.
    fn first_instruction(&self) -> Result<f64> {
        let stats = self.directory.join("stats.json");
        let status = self.command(&TRANSLATING, &CASES[0], &self.console()).arg("--stats").arg(&stats).status()?;
        if !status.success() {
            return Err("minivmm failed".into());
        }
        let report: serde_json::Value = serde_json::from_slice(&fs::read(&stats)?)?;
        let us = report["stages_us"]["first_instruction"].as_f64().ok_or("no such stage in the statistics")?;
        Ok(us / 1000.0)
    }

    /// MiB beyond guest RAM, and percent of a core, of a guest that sleeps.
    fn idle(&self) -> Result<(f64, f64)> {
        let mut child = self.command(&TRANSLATING, &IDLE, &self.console()).spawn()?;
        let measured = self.watch_idle(&child);
        child.kill()?;
        child.wait()?;
        measured
    }

    fn watch_idle(&self, child: &Child) -> Result<(f64, f64)> {
        let deadline = Instant::now() + LONGEST_RUN;
        while !fs::read_to_string(self.console()).unwrap_or_default().contains("BENCH idle") {
            if Instant::now() > deadline {
                return Err("the guest did not come up".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // The kernel's last timers of start-up.
        std::thread::sleep(Duration::from_secs(2));
        let before = cpu_ticks(child.id())?;
        std::thread::sleep(Duration::from_secs(IDLE_SECONDS));
        let ticks = cpu_ticks(child.id())? - before;
        let per_second = rustix::param::clock_ticks_per_second();
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let percent = 100.0 * ticks as f64 / (per_second * IDLE_SECONDS) as f64;
        Ok((memory_beyond_ram(child.id())?, percent))
    }
}

/// Adds `archive` to an initramfs.
fn append(initrd: &mut Vec<u8>, archive: &Archive) -> Result<()> {
    // A further archive begins at a multiple of four bytes.
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(archive.to_bytes().ok_or("the archive is too large")?);
    Ok(())
}

/// The program of the floating-point job, compiled for the guest.
fn float(directory: &Path) -> Result<Vec<u8>> {
    let program = directory.join("float");
    let mut compiler = Command::new("aarch64-linux-gnu-gcc");
    compiler.args(["-O3", "-static", "-o"]).arg(&program).args([FLOAT, "-lm"]);
    if !compiler.status().map_err(|error| format!("aarch64-linux-gnu-gcc: {error}"))?.success() {
        return Err("the floating-point job does not compile".into());
    }
    Ok(fs::read(program)?)
}

/// User and system time of a process, in clock ticks.
fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold spaces; fields 14 and 15 are counted from behind it.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field =
        |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).ok_or("unknown format of /proc");
    Ok(field(11)? + field(12)?)
}

/// Resident memory without the mapping that is guest RAM, in MiB: the one of exactly its size. Generated code is mapped twice and
/// counted once, as proportional set size does.
fn memory_beyond_ram(pid: u32) -> Result<f64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut resident_kib, mut is_ram) = (0u64, false);
    for line in smaps.lines() {
        let kib = line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
        match (line.split(':').next(), kib) {
            (Some("Size"), Some(kib)) => is_ram = kib == MEMORY_MIB * 1024,
            (Some("Pss"), Some(kib)) if !is_ram => resident_kib += kib,
            _ => {}
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    Ok(resident_kib as f64 / 1024.0)
}
