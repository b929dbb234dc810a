//! [`MISTAKES`] lists what authors of other programs got wrong with Hypervisor.framework, and which test would have told them. The list is that of
//! `reference/hvf.md` §10.2, in its order.
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::path::Path;

/// How a mistake would have been found.
enum Caught {
    /// By these tests: of `tests/`, of the back end, or of the simulator (`b..`).
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
        By(&[
            "memory_that_goes_before_its_machine_ends_the_process",
            "machine_can_be_made_again_and_again_and_leaves_nothing",
            "kick_of_a_vcpu_that_is_gone_reaches_no_other",
        ]),
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
