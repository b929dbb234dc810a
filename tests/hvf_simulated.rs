//! The back end for Hypervisor.framework on a simulator of it that is as unpleasant as it can be, and what the simulator alone can tell. Not on
//! a Mac, whose framework would be in its way.
#![cfg(not(target_os = "macos"))]
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use minivmm::hypervisor::{GuestIo, Irqchip, VcpuStop};
use minivmm_aarch64::{Intid, SysReg};
use minivmm_hvf_sim::{Knobs, icache_invalidations, live_objects, real_time_threads, set_knobs};
use support::session::{self, alone, output_of};
use support::small_guest::{DEVICE, Guest, Nothing, RAM};
use support::{HVC, minivmm, parts};
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

/// A small guest on a simulator with these knobs turned.
fn guest(knobs: Knobs, code: &[u32]) -> Guest {
    Guest::after(|| set_knobs(knobs), code)
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
    assert!(
        status == 1 && errors.contains("this Mac is a virtual machine") && errors.contains("`--hypervisor soft`"),
        "{errors}"
    );
}

#[test]
fn macos_that_is_too_old_is_named() {
    let (status, errors) = refusal("macos=14");
    assert!(status == 1 && errors.contains("macOS 14 is too old") && errors.contains("update, or use"), "{errors}");
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

#[test]
fn code_that_the_host_writes_is_made_visible() {
    let guest = guest(Knobs::default(), &[HVC]);
    guest.vm.code_was_written(RAM, 64);
    let start = guest.ram.memory().get_host_address(RAM).unwrap() as usize;
    assert!(icache_invalidations().contains(&(start..start + 64)));
}

#[test]
fn vcpu_threads_are_real_time() {
    let guest = guest(Knobs::default(), &[HVC]);
    let before = real_time_threads();
    guest.run(0).unwrap();
    assert_eq!(real_time_threads(), before + 1);
}

#[test]
fn machine_can_be_made_again_and_again_and_leaves_nothing() {
    let mut lines = Vec::new();
    for _ in 0..5 {
        let guest = guest(Knobs::default(), &[HVC]);
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
    let guest = guest(Knobs { lost_cancel: true, ..Knobs::default() }, &[0xb900_0001, 0x17ff_ffff]);
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
fn kick_of_a_vcpu_that_is_gone_reaches_no_other() {
    let guest = guest(Knobs::default(), &[HVC]);
    let builder = guest.vm.vcpu_builder(0);
    let kicker = builder.kicker();
    drop(builder.bind().unwrap());
    // It has the number of the one that is gone.
    let mut other = guest.vm.vcpu_builder(1).bind().unwrap();
    other.start(RAM, 0).unwrap();
    kicker.kick();
    assert_eq!(other.run(&Nothing).unwrap(), VcpuStop::Hypercall);
    assert!(other.counters().contains(&("exits_canceled", 0)));
}
