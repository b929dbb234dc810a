//! The software CPU's tiers under a stock kernel: code that changes while it runs, and every unit of generated code compared with tier 0.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::path::Path;

use support::session::{alone, boot_within, output_of, report};

mod support;

/// What `script` prints in the guest, which powers off in the end.
fn shell(arguments: &[&str], script: &str) -> String {
    let _alone = alone();
    // Lockstep takes its time.
    output_of(boot_within(900, "soft", arguments), script)
}

/// JIT compilers, fork and mmap, a debugger, kprobes, and the kernel's own compiler of packet filters: see the program.
fn change_code(tier: &str) {
    let Some(image) = support::guest_program("code_changes") else { return };
    let disk = format!("{},ro", image.display());
    let script = "cat /dev/vda >/tmp/program && chmod +x /tmp/program && /tmp/program";
    assert_eq!(shell(&["--cpus", "2", "--cpu-tier", tier, "--disk", &disk], script), "every change was seen\n");
}

#[test]
fn changed_code_is_seen_by_tier_0() {
    change_code("interpret");
}

#[test]
fn changed_code_is_seen_by_generated_code() {
    change_code("translate");
}

#[test]
fn changed_code_is_seen_where_all_code_is_generated() {
    change_code("translate=0");
}

#[test]
fn module_comes_and_goes() {
    let script =
        "for turn in 1 2 3 4 5; do modprobe loop && [ -e /dev/loop0 ] && rmmod loop || echo failed; done; echo done";
    assert_eq!(shell(&["--cpus", "2"], script), "done\n");
}

#[test]
fn generated_code_does_what_tier_0_does_while_a_kernel_boots() {
    let directory = tempfile::tempdir().unwrap();
    let stats = directory.path().join("stats.json");
    let arguments = ["--cpus", "1", "--cpu-tier", "lockstep", "--stats", stats.to_str().unwrap()];
    assert_eq!(shell(&arguments, "seq 3 | sort -r"), "3\n2\n1\n");
    let (compared, not_compared) = (counter(&stats, "units_compared"), counter(&stats, "units_not_compared"));
    if compared == 0 && std::env::consts::ARCH != "x86_64" {
        eprintln!("skipped: no code is generated for this host");
        return;
    }
    assert!(compared > 1_000_000, "only {compared} units were compared");
    assert!(not_compared * 1000 < compared, "{not_compared} units beside {compared} could not be compared");
}

#[test]
fn statistics_say_what_each_tier_did_and_why_guests_were_left() {
    let directory = tempfile::tempdir().unwrap();
    let stats = directory.path().join("stats.json");
    shell(&["--cpus", "2", "--stats", stats.to_str().unwrap()], "seq 3000 | md5sum");
    let sum = |name: &str| counter(&stats, name);
    let (instructions, translated) = (sum("instructions"), sum("instructions_translated"));
    assert!(sum("tlb_hits") > 100 * sum("tlb_misses") && sum("tlb_misses") > 1000);
    assert!(sum("exits_hypercall") > 5 && sum("exits_mmio_read") > 50 && sum("exits_mmio_write") > 50);
    assert!(sum("interrupts") > 20 && sum("waits") > 0 && sum("kicks") > 0);
    let machine = &report(&stats).unwrap()["devices"];
    assert!(machine["gic"]["raised"].as_u64() > Some(20), "{machine}");
    let in_use = machine["hypervisor"]["unit_bytes_in_use"].as_u64().unwrap();
    if in_use == 0 && std::env::consts::ARCH != "x86_64" {
        eprintln!("skipped: no code is generated for this host");
        return;
    }
    assert!(instructions / 2 < translated && translated < instructions, "{translated} of {instructions}");
    assert!(in_use > 1 << 20 && machine["hypervisor"]["unit_bytes_at_most"].as_u64() >= Some(in_use), "{machine}");
    assert!(sum("units") > 1000 && sum("units_shared") > 1000 && sum("unit_bytes") >= in_use / 2);
    let left = ["exits_no_unit", "exits_unknown_page", "exits_tier_0", "exits_exception", "exits_attention"].map(sum);
    assert_eq!(left.iter().sum::<u64>(), sum("units_entered"));
}

/// A counter of all vCPUs together.
fn counter(stats: &Path, name: &str) -> u64 {
    report(stats).unwrap()["vcpus"].as_array().unwrap().iter().map(|vcpu| vcpu[name].as_u64().unwrap()).sum()
}
