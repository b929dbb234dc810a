//! The back end for KVM, with stock Debian kernels, and what it says where KVM does not do.
//!
//! Hosts without KVM for arm64 guests pass over these tests; `.ci/kvm` runs them in a machine that has it. What every back end does is in
//! `conformance.rs`. `MINIVMM_BACKENDS=kvm` makes it an error to have none.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use minivmm::hypervisor::Backend;
use support::session::{alone, boot, output_of, report, stats, up};
use support::{minivmm, parts, run, stock_kernel, write_image};

mod support;

/// Whether this host can run these tests. If not, says why.
fn has_kvm() -> bool {
    let usable = Backend::Kvm.open();
    if let Err(error) = &usable {
        assert!(std::env::var_os("MINIVMM_BACKENDS").is_none_or(|chosen| chosen != "kvm"), "{error}");
        eprintln!("skipped: {error}");
    }
    usable.is_ok()
}

/// The command that boots the `shell` bundle.
fn machine(arguments: &[&str]) -> Command {
    boot("kvm", arguments)
}

/// Checks that `script` prints `expected` in the guest, which powers off in the end.
fn prints(arguments: &[&str], script: &str, expected: &str) {
    if has_kvm() {
        let _alone = alone();
        assert_eq!(output_of(machine(arguments), script), expected);
    }
}

#[test]
fn one_vcpu_boots() {
    prints(&["--cpus", "1"], "nproc; uname -m", "1\naarch64\n");
}

#[test]
fn two_vcpus_boot_and_their_kernel_warns_of_nothing() {
    // A host that is itself emulated may be late.
    let script = "nproc; dmesg -r | grep '^<[0-4]>' | grep -v 'hrtimer: interrupt took'";
    prints(&["--cpus", "2"], script, "2\n");
}

#[test]
fn four_vcpus_boot() {
    prints(&["--cpus", "4"], "nproc", "4\n");
}

#[test]
fn devices_are_where_the_transport_says() {
    if has_kvm() {
        stock_kernel::devices_are_where_the_transport_says(machine);
    }
}

#[test]
fn vcpu_goes_offline_and_comes_back() {
    if has_kvm() {
        stock_kernel::vcpu_goes_offline_and_comes_back(machine);
    }
}

#[test]
fn disk_has_the_hosts_bytes() {
    if has_kvm() {
        stock_kernel::disk_has_the_hosts_bytes(machine, 8 << 20);
    }
}

#[test]
fn reboot_restarts_the_machine() {
    if has_kvm() {
        stock_kernel::reboot_restarts_the_machine(machine);
    }
}

#[test]
fn vcpus_pause_in_whatever_they_do() {
    if has_kvm() {
        stock_kernel::vcpus_pause_in_whatever_they_do(machine, 20);
    }
}

#[test]
fn power_key_shuts_the_guest_down() {
    if has_kvm() {
        stock_kernel::power_key_shuts_the_guest_down(machine);
    }
}

#[test]
fn statistics_count_exits_of_which_an_idle_guest_has_none() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stats.json");
    let _alone = alone();
    let (mut child, stdin) = up(machine(&["--cpus", "2", "--stats", path.to_str().unwrap()]));
    let sum = |report: &serde_json::Value, name: &str| {
        let of = |vcpu: &serde_json::Value| vcpu[name].as_u64().unwrap_or_else(|| panic!("no {name}"));
        report["vcpus"].as_array().unwrap().iter().map(of).sum::<u64>()
    };
    let accesses = |report: &serde_json::Value| sum(report, "exits_mmio_read") + sum(report, "exits_mmio_write");
    let before = accesses(&stats(&mut child, &path, 0));
    std::thread::sleep(Duration::from_secs(3));
    fs::remove_file(&path).unwrap();
    let idle = accesses(&stats(&mut child, &path, 0)) - before;
    assert!(before > 100 && idle < 50, "{before} accesses to devices up to the prompt, {idle} in three idle seconds");
    drop(stdin);
    assert!(child.wait().unwrap().success());
    let report = report(&path).unwrap();
    assert!(sum(&report, "kicks") > 1 && sum(&report, "exits_canceled") > 0, "{report}");
    assert_eq!((sum(&report, "exits_smc"), sum(&report, "exits_system_event")), (0, 1), "{report}");
    assert!(report["devices"]["hypervisor"]["interrupts_injected"].as_u64() > Some(3), "{report}");
    assert_eq!(report["hypervisor"], "kvm");
}

#[test]
fn access_that_kvm_cannot_emulate_ends_the_machine_and_is_named() {
    if !has_kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // mov x4, #0x0b00_0000; ldp x2, x3, [x4]
    let kernel = write_image(&directory.path().join("Image"), &[0xd2a1_6004, 0xa940_0c82]);
    let (status, _, errors) = run(&["boot", "--hypervisor", "kvm", "--kernel", kernel.to_str().unwrap()]);
    assert!(status == 1 && errors.contains("an instruction that KVM cannot emulate"), "{status}: {errors}");
}

#[test]
fn auto_picks_kvm() {
    if has_kvm() {
        let (_, output, _) = parts(minivmm(&["probe"]).output().unwrap());
        assert!(output.contains("kvm    KVM                    usable\n"), "{output}");
        assert!(output.contains("auto   picks kvm\n"), "{output}");
    }
}
