//! The back end for Hypervisor.framework, on the simulator of it: stock Debian kernels, and guests of a few instructions for what only this
//! back end does. What every back end does is in `conformance.rs`, which runs on the simulator too, with each of its knobs turned.
//!
//! [`MISTAKES`] lists what authors of other programs got wrong with the framework, and which test would have told them.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use minivmm::hypervisor::{Backend, GuestIo, HypervisorError, Irqchip, Vcpu, VcpuStop, Vm, VmSpec};
use minivmm::memory::GuestRam;
use minivmm_aarch64::{Intid, SysReg};
use minivmm_hvf_sim::{Knobs, icache_invalidations, live_objects, real_time_threads, set_knobs};
use minivmm_softcpu::Tier;
use support::session::{self, alone, output_of, report, signal, stats, up};
use support::{file_of_len, minivmm, parts};
use vm_memory::{GuestAddress, GuestMemoryBackend};

mod support;

/// The command that boots the `shell` bundle with the simulator's `knobs` turned.
fn boot(knobs: &str, arguments: &[&str]) -> Command {
    let mut command = session::boot("hvf", arguments);
    command.env("MINIVMM_HVF_SIM", knobs);
    command
}

/// What `script` prints in the guest, which powers off in the end.
fn shell_on(knobs: &str, arguments: &[&str], script: &str) -> String {
    let _alone = alone();
    output_of(boot(knobs, arguments), script)
}

fn shell(arguments: &[&str], script: &str) -> String {
    shell_on("", arguments, script)
}

#[test]
fn one_vcpu_boots() {
    assert_eq!(shell(&["--cpus", "1"], "nproc; uname -m"), "1\naarch64\n");
}

#[test]
fn two_vcpus_boot() {
    assert_eq!(shell(&["--cpus", "2"], "nproc"), "2\n");
}

#[test]
fn four_vcpus_boot() {
    assert_eq!(shell(&["--cpus", "4"], "nproc"), "4\n");
}

#[test]
fn vcpus_of_the_second_affinity_group_boot() {
    assert_eq!(shell(&["--cpus", "18"], "nproc"), "18\n");
}

#[test]
fn boots_though_cancels_are_lost() {
    assert_eq!(shell_on("lost-cancel", &["--cpus", "2"], "nproc"), "2\n");
}

#[test]
fn boots_though_cancels_come_uncalled() {
    assert_eq!(shell_on("spurious-cancel", &["--cpus", "2"], "nproc"), "2\n");
}

#[test]
fn boots_though_the_redistributor_region_swallows_accesses() {
    assert_eq!(shell_on("absorb", &["--cpus", "2"], "nproc"), "2\n");
}

#[test]
fn boots_with_the_identification_of_macos_12() {
    assert_eq!(shell_on("id=macos12", &["--cpus", "2"], "nproc"), "2\n");
}

#[test]
fn boots_on_the_interpreter() {
    assert_eq!(shell_on("tier=interpret", &["--cpus", "2"], "nproc"), "2\n");
}

#[test]
fn sleep_lasts_as_long_as_it_says_though_the_counter_runs_at_1_ghz() {
    let script = "dmesg | grep -c 'running at 1000.00MHz'; echo start; sleep 1; echo end";
    let _alone = alone();
    let mut child = boot("counter=1ghz", &["--cpus", "2"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let mut seen = Vec::new();
    let mut read_up_to = |end: &str| {
        while !String::from_utf8_lossy(&seen).ends_with(end) {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        Instant::now()
    };
    let start = read_up_to("1\nstart\n");
    let slept = read_up_to("end\n").duration_since(start);
    assert!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&slept), "{slept:?}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn kernel_warns_of_nothing() {
    assert_eq!(shell(&["--cpus", "2"], "dmesg -r | grep '^<[0-4]>'"), "");
}

#[test]
fn guest_sees_neither_streaming_vectors_nor_more_address_bits_than_there_are() {
    let script = "grep -c sme /proc/cpuinfo; dmesg | grep -c 'detected: Scalable Matrix'";
    assert_eq!(shell(&[], script), "0\n0\n");
}

#[test]
fn disk_has_the_hosts_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let (source, copy) = (directory.path().join("source.img"), directory.path().join("copy.img"));
    let mut random = fs::File::open("/dev/urandom").unwrap().take(32 << 20);
    std::io::copy(&mut random, &mut fs::File::create(&source).unwrap()).unwrap();
    file_of_len(&copy, 32 << 20);
    let script = "md5sum </dev/vda; dd if=/dev/vda of=/dev/vdb bs=1M 2>/dev/null; sync";
    let disks = [&format!("{},ro", source.display()), copy.to_str().unwrap()];
    let output = shell_on("lost-cancel", &["--cpus", "2", "--disk", disks[0], "--disk", disks[1]], script);
    let sum = Command::new("md5sum").arg(&source).output().unwrap().stdout;
    let sum = String::from_utf8(sum).unwrap().split_whitespace().next().unwrap().to_owned();
    assert_eq!(output, format!("{sum}  -\n"));
    assert!(fs::read(&source).unwrap() == fs::read(&copy).unwrap(), "the copy differs");
}

#[test]
fn vcpu_goes_offline_and_comes_back() {
    let script =
        "cd /sys/devices/system/cpu/cpu1; for i in 1 2 3; do echo 0 >online; nproc; echo 1 >online; nproc; done";
    assert_eq!(shell(&["--cpus", "2"], script), "1\n2\n".repeat(3));
}

#[test]
fn reboot_restarts_the_machine() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stats.json");
    let _alone = alone();
    let (mut child, mut stdin) = up(boot("", &["--cpus", "2", "--stats", path.to_str().unwrap()]));
    stdin.write_all(b"touch /tmp/first; reboot -f\n").unwrap();
    stats(&mut child, &path, 1);
    stdin.write_all(b"ls /tmp; echo second\n").unwrap();
    drop(stdin);
    let (status, output, _) = parts(child.wait_with_output().unwrap());
    assert_eq!((status, output.lines().last()), (0, Some("second")), "{output}");
    assert!(!output.contains("first"), "memory survived");
}

/// SIGUSR1 pauses all vCPUs, writes the statistics, and lets them go on.
#[test]
fn pause_works_though_cancels_are_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stats.json");
    let _alone = alone();
    let (mut child, mut stdin) = up(boot("lost-cancel", &["--cpus", "2", "--stats", path.to_str().unwrap()]));
    // The second vCPU leaves the guest all the time: it reads the clock's registers.
    let script = "(while true; do hwclock -r >/dev/null; done) & for i in $(seq 40); do sleep 0.05; done; echo done\n";
    stdin.write_all(script.as_bytes()).unwrap();
    for _ in 0..30 {
        fs::remove_file(&path).ok();
        stats(&mut child, &path, 0);
    }
    drop(stdin);
    let (status, output, _) = parts(child.wait_with_output().unwrap());
    assert_eq!((status, output.as_str()), (0, "done\n"));
}

#[test]
fn power_key_shuts_the_guest_down() {
    let _alone = alone();
    let (child, stdin) = up(boot("", &[]));
    signal(&child, rustix::process::Signal::TERM);
    let (status, _, errors) = parts(child.wait_with_output().unwrap());
    drop(stdin);
    assert_eq!(status, 0, "{errors}");
}

#[test]
fn statistics_count_exits_kicks_and_interrupts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stats.json");
    shell(&["--cpus", "2", "--stats", path.to_str().unwrap()], "echo x >/dev/ttyAMA0 2>/dev/null; sleep 2");
    let report = report(&path).unwrap();
    let vcpus = report["vcpus"].as_array().unwrap();
    let vcpu =
        |name: &str| vcpus.iter().map(|vcpu| vcpu[name].as_u64().unwrap_or_else(|| panic!("no {name}"))).sum::<u64>();
    assert!(vcpu("exits_mmio_read") > 50 && vcpu("exits_mmio_write") > 50);
    assert!(vcpu("exits_hvc") > 5 && vcpu("exits_sysreg") > 5);
    assert_eq!((vcpu("exits_sysreg_unexpected"), vcpu("exits_wait"), vcpu("exits_virtual_timer")), (0, 0, 0));
    assert!(vcpu("guest_ns") > 100_000_000);
    assert!(report["devices"]["hypervisor"]["interrupts_injected"].as_u64() > Some(3));
    assert_eq!(report["hypervisor"], "hvf");
}

#[test]
fn idle_guest_does_not_leave() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stats.json");
    let exits = |script: &str| {
        shell(&["--cpus", "1", "--stats", path.to_str().unwrap()], script);
        let vcpu = report(&path).unwrap()["vcpus"][0].as_object().unwrap().clone();
        vcpu.iter()
            .filter(|(name, _)| name.starts_with("exits_"))
            .map(|(_, count)| count.as_u64().unwrap())
            .sum::<u64>()
    };
    let (at_once, idle) = (exits("true"), exits("sleep 3"));
    assert!(idle < at_once + 100, "{idle} exits with three idle seconds, {at_once} without");
}

/// What `minivmm boot` says and returns on a host that `knobs` describe.
fn refusal(knobs: &str) -> (i32, String) {
    let _alone = alone();
    let (status, _, errors) = parts(boot(knobs, &[]).stdin(Stdio::null()).output().unwrap());
    (status, errors)
}

#[test]
fn program_without_the_entitlement_says_how_to_sign_it() {
    let (status, errors) = refusal("denied");
    assert!(status == 1 && errors.contains("com.apple.security.hypervisor") && errors.contains("codesign"), "{errors}");
    assert_eq!(errors.lines().count(), 1);
}

#[test]
fn mac_that_is_a_virtual_machine_says_so() {
    let (status, errors) = refusal("unsupported");
    assert!(status == 1 && errors.contains("this Mac is a virtual machine"), "{errors}");
}

#[test]
fn macos_that_is_too_old_is_named() {
    let (status, errors) = refusal("macos=14");
    assert!(status == 1 && errors.contains("macOS 14 is too old"), "{errors}");
}

#[test]
fn host_without_room_for_a_vcpu_says_what_to_do() {
    let (status, errors) = refusal("no-resources");
    assert!(status == 1 && errors.contains("choose fewer --cpus"), "{errors}");
}

#[test]
fn auto_never_picks_the_simulator() {
    let (_, output, _) = parts(minivmm(&["probe"]).output().unwrap());
    assert!(output.contains("usable, simulated") && output.contains("auto   picks soft"), "{output}");
}

#[test]
fn probe_programs_find_what_the_simulator_simulates() {
    let _alone = alone();
    let (status, output, errors) = parts(minivmm(&["probe", "--hvf"]).env("MINIVMM_HVF_SIM", "").output().unwrap());
    assert_eq!((status, errors.as_str()), (0, ""));
    let different: Vec<&str> = output.lines().filter(|line| line.starts_with("DIFFERENT")).collect();
    assert!(different.is_empty(), "{output}");
    assert!(output.lines().filter(|line| line.starts_with("as expected")).count() >= 20, "{output}");
}

const RAM: GuestAddress = GuestAddress(0x8000_0000);
const RAM_SIZE: u64 = 0x20_0000;
const DEVICE: u64 = 0x0b00_0000;
const HVC: u32 = 0xd400_0002;

/// Reads zero, forgets what is written.
struct Nothing;

impl GuestIo for Nothing {
    fn mmio_read(&self, _gpa: GuestAddress, data: &mut [u8]) {
        data.fill(0);
    }

    fn mmio_write(&self, _gpa: GuestAddress, _data: &[u8]) {}

    fn read_sysreg(&self, _vcpu: u32, _reg: SysReg) -> Option<u64> {
        None
    }

    fn write_sysreg(&self, _vcpu: u32, _reg: SysReg, _value: u64) -> bool {
        false
    }

    fn set_ppi(&self, _vcpu: u32, _ppi: Intid, _level: bool) {}
}

struct Guest {
    vm: Arc<dyn Vm>,
    ram: Arc<GuestRam>,
    _alone: MutexGuard<'static, ()>,
}

impl Guest {
    fn new(code: &[u32]) -> Self {
        Self::with(Knobs::default(), code)
    }

    fn with(knobs: Knobs, code: &[u32]) -> Self {
        let alone = alone();
        set_knobs(knobs);
        let ram = Arc::new(GuestRam::new(RAM, RAM_SIZE).unwrap());
        let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        ram.place("code", RAM, &bytes).unwrap();
        let hypervisor = Backend::Hvf.open().unwrap();
        let vm = hypervisor.create_vm(&VmSpec { vcpu_count: 1, ram: ram.clone(), cpu_tier: Tier::default() }).unwrap();
        Self { vm, ram, _alone: alone }
    }

    /// Runs the code with `x0` up to an HVC.
    fn run(&self, x0: u64) -> Result<Box<dyn Vcpu>, HypervisorError> {
        let mut vcpu = self.vm.vcpu_builder(0).bind()?;
        vcpu.start(RAM, x0)?;
        assert_eq!(vcpu.run(&Nothing)?, VcpuStop::Hypercall);
        Ok(vcpu)
    }
}

#[test]
fn trapped_registers_read_zero_ignore_writes_and_let_the_guest_go_on() {
    let mrs = |reg: u32, register: u32| 0xd520_0000 | reg << 5 | register;
    let msr = |reg: u32, register: u32| 0xd500_0000 | reg << 5 | register;
    // OSLAR, OSDLR, MDCCINT and LORC written; OSLSR, ID_AA64ISAR2, PMCR_EL0 and, as XZR, OSLSR read.
    let code = [
        msr(0x8084, 0),
        msr(0x809c, 31),
        msr(0x8010, 0),
        msr(0xc523, 0),
        mrs(0x808c, 0),
        mrs(0xc032, 1),
        mrs(0xdce0, 2),
        mrs(0x808c, 31),
        HVC,
    ];
    let guest = Guest::new(&code);
    let mut vcpu = guest.run(u64::MAX).unwrap();
    let registers = vcpu.registers();
    assert_eq!((registers.x(0), registers.x(1), registers.x(2)), (0, 0, 0));
    assert_eq!(registers.pc(), RAM.0 + 36);
}

#[test]
fn vcpu_that_starts_again_has_nothing_of_before() {
    // mrs x1, SCTLR_EL1; mrs x2, VBAR_EL1; mrs x3, TPIDR_EL1; msr SCTLR_EL1, x0; msr VBAR_EL1, x0; msr TPIDR_EL1, x0; hvc
    let code = [0xd538_1001, 0xd538_c002, 0xd538_d083, 0xd518_1000, 0xd518_c000, 0xd518_d080, HVC];
    let guest = Guest::new(&code);
    let mut vcpu = guest.run(0x30d0_1804).unwrap();
    let first = [1, 2, 3].map(|number| vcpu.registers().x(number));
    vcpu.start(RAM, 0x30d0_1804).unwrap();
    assert_eq!(vcpu.run(&Nothing).unwrap(), VcpuStop::Hypercall);
    assert_eq!([1, 2, 3].map(|number| vcpu.registers().x(number)), first);
    assert_eq!((first[0] & 0x1005, first[1], first[2]), (0, 0, 0));
}

#[test]
fn access_that_does_not_describe_itself_ends_the_guest_with_a_reason() {
    // stp x1, x2, [x0]
    let guest = Guest::new(&[0xa900_0801]);
    let error = guest.run(DEVICE).err().unwrap().to_string();
    assert!(error.starts_with("vCPU 0 stopped at 0x80000000: access to 0xb000000 by a load or store"), "{error}");
}

#[test]
fn fetch_from_nowhere_ends_the_guest_with_a_reason() {
    // br x0
    let guest = Guest::new(&[0xd61f_0000]);
    let error = guest.run(DEVICE).err().unwrap().to_string();
    assert!(error.contains("stopped at 0xb000000: instruction fetch from 0xb000000"), "{error}");
}

#[test]
fn cache_maintenance_of_a_device_is_nothing() {
    // dc civac, x0; hvc
    let guest = Guest::new(&[0xd50b_7e20, HVC]);
    guest.run(DEVICE).unwrap();
}

#[test]
fn code_that_the_host_writes_is_made_visible() {
    let guest = Guest::new(&[HVC]);
    guest.vm.code_was_written(RAM, 64);
    let start = guest.ram.memory().get_host_address(RAM).unwrap() as usize;
    assert!(icache_invalidations().contains(&(start..start + 64)));
}

#[test]
fn vcpu_threads_are_real_time() {
    let guest = Guest::new(&[HVC]);
    let before = real_time_threads();
    guest.run(0).unwrap();
    assert_eq!(real_time_threads(), before + 1);
}

#[test]
fn machine_can_be_made_again_and_again_and_leaves_nothing() {
    let mut lines = Vec::new();
    for _ in 0..5 {
        let guest = Guest::new(&[HVC]);
        guest.run(0).unwrap();
        // A device lives longer than its machine.
        if let Irqchip::InBackend(sink) = guest.vm.irqchip() {
            lines.push(sink);
        }
    }
    lines.iter().for_each(|sink| sink.set_level(Intid(40), true));
    let _alone = alone();
    assert_eq!(live_objects(), 0);
}

/// Forgets what is written, and loses its patience with a guest that writes on and on.
struct Impatient(AtomicU64);

impl GuestIo for Impatient {
    fn mmio_read(&self, _gpa: GuestAddress, data: &mut [u8]) {
        data.fill(0);
    }

    fn mmio_write(&self, _gpa: GuestAddress, _data: &[u8]) {
        assert!(self.0.fetch_add(1, Ordering::Relaxed) < 20_000, "nobody heard the kick");
    }

    fn read_sysreg(&self, _vcpu: u32, _reg: SysReg) -> Option<u64> {
        None
    }

    fn write_sysreg(&self, _vcpu: u32, _reg: SysReg, _value: u64) -> bool {
        false
    }

    fn set_ppi(&self, _vcpu: u32, _ppi: Intid, _level: bool) {}
}

#[test]
fn kick_is_heard_though_cancels_are_lost() {
    // str w1, [x0]; b . - 4: it leaves the guest all the time, which is when cancels are lost.
    let guest = Guest::with(Knobs { lost_cancel: true, ..Knobs::default() }, &[0xb900_0001, 0x17ff_ffff]);
    let builder = guest.vm.vcpu_builder(0);
    let kicker = builder.kicker();
    let mut vcpu = builder.bind().unwrap();
    vcpu.start(RAM, DEVICE).unwrap();
    std::thread::scope(|scope| {
        let (next, rounds) = std::sync::mpsc::channel();
        scope.spawn(move || {
            for () in rounds {
                kicker.kick();
            }
        });
        for _ in 0..40 {
            next.send(()).unwrap();
            assert_eq!(vcpu.run(&Impatient(AtomicU64::new(0))).unwrap(), VcpuStop::Kicked);
        }
    });
}

#[test]
fn second_machine_of_a_process_is_refused() {
    let guest = Guest::new(&[HVC]);
    let spec = VmSpec { vcpu_count: 1, ram: guest.ram.clone(), cpu_tier: Tier::default() };
    let error = Backend::Hvf.open().unwrap().create_vm(&spec).err().unwrap();
    assert!(error.to_string().contains("runs in this process already"), "{error}");
}

#[test]
fn more_vcpus_than_slots_are_refused() {
    let guest = Guest::new(&[HVC]);
    let spec = VmSpec { vcpu_count: 65, ram: guest.ram.clone(), cpu_tier: Tier::default() };
    let error = Backend::Hvf.open().unwrap().create_vm(&spec).err().unwrap();
    assert!(error.to_string().contains("at most 64 vCPUs"), "{error}");
}

/// How a mistake would have been found.
enum Caught {
    /// By these tests, of this file, of `conformance.rs`, of the back end, or of the simulator (`b..`).
    By(&'static [&'static str]),
    /// Not at all, since minivmm has nothing that could make it.
    Absent(&'static str),
}
use Caught::{Absent, By};

/// The mistakes of `reference/hvf.md` §10.2, in its order.
const MISTAKES: [(&str, Caught); 36] = [
    (
        "hv_vcpus_exit with no vCPUs means nobody",
        By(&["b23_cancel_ends_this_run_or_the_next_and_nothing_cancels_nobody", "kick_interrupts_a_busy_guest"]),
    ),
    ("register 31 is XZR, not the PC", By(&["register_31_of_a_device_access_is_zero_and_takes_nothing"])),
    (
        "an ignored register still advances the PC",
        By(&["trapped_registers_read_zero_ignore_writes_and_let_the_guest_go_on"]),
    ),
    ("a register that is read is written", By(&["trapped_registers_read_zero_ignore_writes_and_let_the_guest_go_on"])),
    ("HVC has advanced the PC already", By(&["answer_in_x0_is_seen_by_the_guest"])),
    (
        "a vCPU's number is not its index",
        By(&["affinity_is_that_of_the_index", "vcpus_of_the_second_affinity_group_boot"]),
    ),
    (
        "CPU_ON names an affinity, not an index",
        By(&["cpu_on_starts_a_vcpu_that_is_off", "vcpus_of_the_second_affinity_group_boot"]),
    ),
    ("SCTLR_EL1 is reset when a vCPU starts", By(&["vcpu_that_starts_again_has_nothing_of_before"])),
    ("an exit that is handled goes on in the guest", By(&["loads_from_a_device_are_extended_by_their_sign"])),
    (
        "CPU_OFF and AFFINITY_INFO exist",
        By(&["affinity_info_reports_the_power_state", "vcpu_goes_offline_and_comes_back"]),
    ),
    ("OSLAR_EL1 and OSDLR_EL1 trap", By(&["trapped_registers_read_zero_ignore_writes_and_let_the_guest_go_on"])),
    (
        "SME is hidden",
        By(&[
            "streaming_vectors_of_an_m5_are_hidden_and_its_branch_targets_are_not",
            "guest_sees_neither_streaming_vectors_nor_more_address_bits_than_there_are",
        ]),
    ),
    (
        "identification is pinned by field",
        By(&[
            "streaming_vectors_of_an_m5_are_hidden_and_its_branch_targets_are_not",
            "boots_with_the_identification_of_macos_12",
        ]),
    ),
    ("set_el2_enabled takes a bool", Absent("no nested virtualization")),
    ("MDCCINT_EL1 traps since macOS 26", By(&["trapped_registers_read_zero_ignore_writes_and_let_the_guest_go_on"])),
    ("the interrupt controller is there by default", By(&["one_vcpu_boots"])),
    ("mappings have the host's granule", By(&["b05_mappings_are_aligned_to_16_kib", "memory_is_shared_with_the_host"])),
    (
        "memory goes after the machine, numbers before the vCPU",
        By(&["machine_can_be_made_again_and_again_and_leaves_nothing", "reboot_restarts_the_machine"]),
    ),
    ("a sleeping vCPU hears the kick", By(&["kick_interrupts_a_sleeping_guest"])),
    (
        "a level line is not pulsed",
        By(&["b34_level_that_stays_fires_again_and_one_that_goes_is_lost", "disk_has_the_hosts_bytes"]),
    ),
    ("pages are replaced through the framework", By(&["b43_guest_keeps_host_pages_that_are_replaced"])),
    ("guest memory is accessible on the host", By(&["memory_is_shared_with_the_host"])),
    ("only what is mapped is unmapped", By(&["b07_unmapping_a_gap_ends_the_process"])),
    (
        "the interrupt controller is saved as a blob",
        By(&[
            "b36_state_is_a_blob_that_is_checked_and_leaves_the_cpu_interfaces_out",
            "b37_registers_do_not_show_what_is_on_its_way_to_a_vcpu",
        ]),
    ),
    (
        "a kick is a flag as well",
        By(&["b24_knobs_drop_cancels_and_invent_them", "kick_is_heard_though_cancels_are_lost"]),
    ),
    (
        "nothing is inside the redistributor region",
        By(&[
            "boots_though_the_redistributor_region_swallows_accesses",
            "frames_that_do_not_fit_are_refused_before_a_guest_sees_them",
        ]),
    ),
    ("the probe for EL2 lies", Absent("no nested virtualization")),
    ("symbols are those of the oldest system", Absent(".ci/macos links against those of macOS 15.0, and no others")),
    (
        "setting an interrupt sets it",
        Absent("the framework's interrupt controller needs no pending interrupts of vCPUs"),
    ),
    (
        "an access that does not describe itself is an error, not a crash",
        By(&["access_that_does_not_describe_itself_ends_the_guest_with_a_reason"]),
    ),
    ("nothing polls on the path of vCPUs", By(&["idle_guest_does_not_leave"])),
    ("scheduling is applied, not only asked for", By(&["vcpu_threads_are_real_time"])),
    (
        "the guest's counter may tick otherwise than the host's",
        By(&[
            "sleep_lasts_as_long_as_it_says_though_the_counter_runs_at_1_ghz",
            "times_are_converted_by_the_timebase_and_not_by_a_constant",
        ]),
    ),
    ("the kernel's file is not mapped into guest memory", Absent("images are copied into anonymous memory")),
    ("signals do not interrupt hv_vcpu_run", By(&["kick_interrupts_a_busy_guest", "kick_interrupts_a_sleeping_guest"])),
    (
        "CPU_ON passes the context in x0",
        By(&[
            "cpu_on_starts_a_vcpu_that_is_off",
            "vcpu_starts_at_its_entry_in_el1_with_interrupts_masked_and_the_mmu_off",
        ]),
    ),
];

/// The text of every file in which a test of [`MISTAKES`] may be.
fn test_sources() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = ["tests", "tests/hvf-sim/tests/behaviours", "src/hypervisor", "src/hypervisor/hvf"]
        .iter()
        .flat_map(|directory| fs::read_dir(root.join(directory)).unwrap().map(|entry| entry.unwrap().path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect();
    files.sort();
    files.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn every_known_mistake_has_a_test_or_cannot_be_made() {
    let sources = test_sources();
    for (mistake, caught) in &MISTAKES {
        match caught {
            By(tests) => {
                assert!(!tests.is_empty(), "{mistake}");
                for test in *tests {
                    assert!(
                        sources.contains(&format!("#[test]\nfn {test}()"))
                            || sources.contains(&format!("#[test]\n    fn {test}()")),
                        "{mistake}: no test {test}"
                    );
                }
            }
            Absent(why) => assert!(!why.is_empty(), "{mistake}"),
        }
    }
}
