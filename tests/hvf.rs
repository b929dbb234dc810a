//! The back end for Hypervisor.framework: stock Debian kernels, and guests of a few instructions for what only this back end does. On a Mac with
//! the framework itself, elsewhere on the simulator of it. What every back end does is in `conformance.rs`, what only the simulator can be made
//! to do in `hvf_simulated.rs`.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::process::Command;

use minivmm::hypervisor::{Backend, VcpuStop};
use support::HVC;
use support::session::{self, alone, output_of, report};
use support::small_guest::{DEVICE, Guest, Nothing, RAM, spec};
use support::stock_kernel;

mod support;

/// Whether this host can run these tests: any can that has the simulator. If not, says why.
fn has_hvf() -> bool {
    let usable = Backend::Hvf.open();
    if let Err(error) = &usable {
        eprintln!("skipped: {error}");
    }
    usable.is_ok()
}

/// The command that boots the `shell` bundle, on a simulator that loses cancels.
fn boot(arguments: &[&str]) -> Command {
    let mut command = session::boot("hvf", arguments);
    command.env("MINIVMM_HVF_SIM", "lost-cancel");
    command
}

/// What `script` prints in the guest, which powers off in the end.
fn shell(arguments: &[&str], script: &str) -> String {
    let _alone = alone();
    output_of(session::boot("hvf", arguments), script)
}

#[test]
fn one_vcpu_boots() {
    if !has_hvf() {
        return;
    }
    assert_eq!(shell(&["--cpus", "1"], "nproc; uname -m"), "1\naarch64\n");
}

#[test]
fn two_vcpus_boot() {
    if !has_hvf() {
        return;
    }
    assert_eq!(shell(&["--cpus", "2"], "nproc"), "2\n");
}

#[test]
fn four_vcpus_boot() {
    if !has_hvf() {
        return;
    }
    assert_eq!(shell(&["--cpus", "4"], "nproc"), "4\n");
}

#[test]
fn vcpus_of_the_second_affinity_group_boot() {
    if !has_hvf() {
        return;
    }
    assert_eq!(shell(&["--cpus", "18"], "nproc"), "18\n");
}

#[test]
fn kernel_warns_of_nothing() {
    if !has_hvf() {
        return;
    }
    // A host that did not run the vCPU for a while is not the machine's fault.
    let script = "dmesg -r | grep '^<[0-4]>' | grep -v 'hrtimer: interrupt took'";
    assert_eq!(shell(&["--cpus", "2"], script), "");
}

#[test]
fn guest_sees_neither_streaming_vectors_nor_more_address_bits_than_there_are() {
    if !has_hvf() {
        return;
    }
    let script = "grep -c sme /proc/cpuinfo; dmesg | grep -c 'detected: Scalable Matrix'";
    assert_eq!(shell(&[], script), "0\n0\n");
}

#[test]
fn disk_has_the_hosts_bytes() {
    if !has_hvf() {
        return;
    }
    stock_kernel::disk_has_the_hosts_bytes(boot, 32 << 20);
}

#[test]
fn devices_are_where_the_transport_says() {
    if !has_hvf() {
        return;
    }
    stock_kernel::devices_are_where_the_transport_says(boot);
}

#[test]
fn vcpu_goes_offline_and_comes_back() {
    if !has_hvf() {
        return;
    }
    stock_kernel::vcpu_goes_offline_and_comes_back(boot);
}

#[test]
fn reboot_restarts_the_machine() {
    if !has_hvf() {
        return;
    }
    stock_kernel::reboot_restarts_the_machine(boot);
}

#[test]
fn pause_works_though_cancels_are_lost() {
    if !has_hvf() {
        return;
    }
    stock_kernel::vcpus_pause_in_whatever_they_do(boot, 30);
}

#[test]
fn power_key_shuts_the_guest_down() {
    if !has_hvf() {
        return;
    }
    stock_kernel::power_key_shuts_the_guest_down(boot);
}

#[test]
fn statistics_count_exits_kicks_and_interrupts() {
    if !has_hvf() {
        return;
    }
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
    if !has_hvf() {
        return;
    }
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

#[test]
fn trapped_registers_read_zero_ignore_writes_and_let_the_guest_go_on() {
    if !has_hvf() {
        return;
    }
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
    if !has_hvf() {
        return;
    }
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
    if !has_hvf() {
        return;
    }
    // stp x1, x2, [x0]
    let guest = Guest::new(&[0xa900_0801]);
    let error = guest.run(DEVICE).err().unwrap().to_string();
    assert!(error.starts_with("vCPU 0 stopped at 0x80000000: access to 0xb000000 by a load or store"), "{error}");
}

#[test]
fn fetch_from_nowhere_ends_the_guest_with_a_reason() {
    if !has_hvf() {
        return;
    }
    // br x0
    let guest = Guest::new(&[0xd61f_0000]);
    let error = guest.run(DEVICE).err().unwrap().to_string();
    assert!(error.contains("stopped at 0xb000000: instruction fetch from 0xb000000"), "{error}");
}

#[test]
fn cache_maintenance_of_a_device_is_nothing() {
    if !has_hvf() {
        return;
    }
    // dc civac, x0; hvc
    let guest = Guest::new(&[0xd50b_7e20, HVC]);
    guest.run(DEVICE).unwrap();
}

#[test]
fn second_machine_of_a_process_is_refused() {
    if !has_hvf() {
        return;
    }
    let guest = Guest::new(&[HVC]);
    let error = Backend::Hvf.open().unwrap().create_vm(&spec(1, &guest.ram)).err().unwrap();
    assert!(error.to_string().contains("runs in this process already"), "{error}");
}

#[test]
fn asking_whether_there_is_a_back_end_is_in_no_machines_way() {
    if !has_hvf() {
        return;
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..10_000 {
                Backend::Hvf.open().unwrap();
            }
        });
        for _ in 0..100 {
            drop(Guest::new(&[HVC]));
        }
    });
}

#[test]
fn more_vcpus_than_slots_are_refused() {
    if !has_hvf() {
        return;
    }
    let guest = Guest::new(&[HVC]);
    let error = Backend::Hvf.open().unwrap().create_vm(&spec(65, &guest.ram)).err().unwrap();
    assert!(error.to_string().contains("at most 64 vCPUs"), "{error}");
}
