//! The virtual machine, its memory, and its objects: behaviours 1 to 9 and 42 to 44.

use std::ptr::null_mut;

use minivmm_hvf_sim::{Knobs, live_objects};

use crate::client::*;
use crate::{dies, vcpu_wrote};

#[test]
fn b01_second_machine_of_a_process_is_refused_until_the_first_is_destroyed() {
    let _alone = alone();
    assert_eq!(hv_vm_create(null_mut()), SUCCESS);
    assert_eq!(hv_vm_create(null_mut()), BUSY);
    assert_eq!(hv_vm_destroy(), SUCCESS);
    assert_eq!(hv_vm_create(null_mut()), SUCCESS);
    assert_eq!(hv_vm_destroy(), SUCCESS);
}

#[test]
fn b02_machine_with_vcpus_is_not_destroyed() {
    let machine = Machine::plain();
    let vcpu = Vcpu::ready();
    assert_eq!(hv_vm_destroy(), BUSY);
    machine.code(&[HVC]);
    assert_eq!(vcpu.exception().class(), 0x16, "it still runs");
}

#[test]
fn b03_without_a_machine_there_is_no_device() {
    let _alone = alone();
    let (mut id, mut exit) = (0, std::ptr::null());
    assert_eq!(hv_vcpu_create(&raw mut id, &raw mut exit, null_mut()), NO_DEVICE);
    assert_eq!(hv_vcpu_run(0), NO_DEVICE);
    assert_eq!(hv_vcpu_set_reg(0, 0, 0), NO_DEVICE);
    assert_eq!(hv_vm_map(null_mut(), 0, 0x4000, ALL), NO_DEVICE);
    minivmm_hvf_sim::set_knobs(Knobs { denied: true, ..Knobs::default() });
    assert_eq!(hv_vm_create(null_mut()), DENIED);
    minivmm_hvf_sim::set_knobs(Knobs { unsupported: true, ..Knobs::default() });
    assert_eq!(hv_vm_create(null_mut()), UNSUPPORTED);
}

#[test]
fn b04_address_size_is_36_bits_and_at_most_40() {
    let alone = alone();
    let config = hv_vm_config_create();
    assert_eq!((ask!(hv_vm_config_get_default_ipa_size()), ask!(hv_vm_config_get_max_ipa_size())), (36u32, 40u32));
    assert_eq!(hv_vm_config_set_ipa_size(config, 41), UNSUPPORTED);
    assert_eq!(hv_vm_config_set_ipa_size(config, 40), SUCCESS);
    assert_eq!(hv_vm_config_set_ipa_size(config, 0), SUCCESS);
    os_release(config);
    drop(alone);
    let machine = Machine::plain();
    assert_eq!(hv_vm_map(machine.ram.host(), 1 << 36, 0x4000, ALL), BAD_ARGUMENT);
}

#[test]
fn b05_mappings_are_aligned_to_16_kib() {
    let machine = Machine::plain();
    let host = machine.ram.host();
    assert_eq!(hv_vm_map(host, 0x1000, 0x4000, ALL), ERROR);
    assert_eq!(hv_vm_map(host, 0x4000, 0x1000, ALL), ERROR);
    assert_eq!(hv_vm_map(host.wrapping_byte_add(0x800), 0x4000, 0x4000, ALL), ERROR);
    assert_eq!(hv_vm_map(host, 0, 0x4000, ALL), SUCCESS, "address 0 is as good as any");
}

#[test]
fn b06_overlapping_empty_and_high_mappings_are_refused() {
    let machine = Machine::plain();
    let host = machine.ram.host();
    assert_eq!(hv_vm_map(host, RAM + 0x4000, 0x4000, ALL), ERROR);
    assert_eq!(hv_vm_map(host, 0x4000, 0, ALL), ERROR);
    assert_eq!(hv_vm_unmap(RAM, 0), ERROR);
    assert_eq!(hv_vm_protect(RAM, 0, ALL), ERROR);
    assert_eq!(hv_vm_map(host, (1 << 36) - 0x4000, 0x8000, ALL), BAD_ARGUMENT);
}

#[test]
fn b07_unmapping_a_gap_ends_the_process() {
    dies("machine::b07_unmapping_a_gap_ends_the_process", "not mapped throughout", || {
        let _machine = Machine::plain();
        hv_vm_unmap(RAM + RAM_SIZE as u64 - 0x4000, 0x8000);
    });
}

#[test]
fn b08_protection_changes_while_a_vcpu_runs() {
    let machine = Machine::plain();
    // again: str w2, [x1]; b again
    machine.code(&[STR, 0x17ff_ffff]);
    let vcpu = Vcpu::ready();
    vcpu.set(1, DATA);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The guest has stored something.
            vcpu_wrote(&machine);
            assert_eq!(hv_vm_protect(DATA, 0x4000, 1 | 4), SUCCESS);
        });
        let exit = vcpu.run();
        assert_eq!((exit.reason, exit.class(), exit.syndrome & 0x3c), (EXCEPTION, 0x24, 0xc));
    });
    assert_eq!(hv_vm_protect(DATA, 0x4000, ALL), SUCCESS);
    machine.code(&[STR, HVC]);
    assert_eq!(vcpu.execute(&machine, &[STR, LDR], DATA, 5), 5, "and back");
    assert_eq!(hv_vm_protect(DATA, 0x4000, 0), SUCCESS);
    vcpu.set(PC, CODE);
    assert_eq!(vcpu.exception().class(), 0x24);
}

#[test]
fn b09_flags_are_bits() {
    let machine = Machine::plain();
    let other = Memory::new(0x4000);
    other.put(0, &[HVC]);
    // 4 is execute, whatever an enumeration may call it.
    assert_eq!(hv_vm_map(other.host(), 0x4000, 0x4000, 4), SUCCESS);
    machine.code(&[LDR]);
    let vcpu = Vcpu::ready();
    vcpu.set(1, 0x4000);
    assert_eq!(vcpu.exception().class(), 0x24, "no read");
    assert_eq!(hv_vm_map(other.host(), 0x8000, 0x4000, 8), BAD_ARGUMENT);
    assert_eq!(hv_vm_unmap(0x4000, 0x4000), SUCCESS);
}

#[test]
fn b42_objects_live_until_they_are_released_and_no_longer() {
    dies("machine::b42_objects_live_until_they_are_released_and_no_longer", "released or never made", || {
        let _alone = alone();
        let before = live_objects();
        let config = hv_vm_config_create();
        assert_eq!(live_objects(), before + 1);
        os_release(config);
        assert_eq!(live_objects(), before);
        os_release(config);
    });
}

#[test]
fn b43_guest_keeps_host_pages_that_are_replaced() {
    let machine = Machine::plain();
    let len = 0x4000;
    let map = |address: *mut std::ffi::c_void, flags| {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | flags;
        // SAFETY: a new mapping, or one that replaces our own.
        let mapped = unsafe { libc::mmap(address, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        assert_ne!(mapped, libc::MAP_FAILED);
        mapped
    };
    let host = map(null_mut(), 0);
    // SAFETY: mapped above, and aligned.
    unsafe { host.cast::<u32>().write_volatile(7) };
    assert_eq!(hv_vm_map(host, 0x4000, len, ALL), SUCCESS);
    let vcpu = Vcpu::ready();
    assert_eq!(vcpu.load(&machine, 0x4000), 7);
    map(host, libc::MAP_FIXED);
    // SAFETY: mapped again.
    unsafe { host.cast::<u32>().write_volatile(8) };
    assert_eq!(vcpu.load(&machine, 0x4000), 7, "the old page");
    assert_eq!(hv_vm_unmap(0x4000, len), SUCCESS);
    assert_eq!(hv_vm_map(host, 0x4000, len, ALL), SUCCESS);
    assert_eq!(vcpu.load(&machine, 0x4000), 8);
    assert_eq!(hv_vm_unmap(0x4000, len), SUCCESS);
}

#[test]
fn b44_mapping_touches_nothing() {
    let machine = Machine::plain();
    let len = 0x1_0000;
    // SAFETY: a new mapping.
    let host = unsafe { libc::mmap(null_mut(), len, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    assert_ne!(host, libc::MAP_FAILED);
    // A touch would be a segmentation fault.
    assert_eq!(hv_vm_map(host, 0x4000, len, ALL), SUCCESS);
    assert_eq!(hv_vm_unmap(0x4000, len), SUCCESS);
    drop(machine);
}

/// Not one of the 44, but what arcbox got wrong (§10.2, 18): memory is the framework's until the machine is gone.
#[test]
fn memory_that_goes_before_its_machine_ends_the_process() {
    dies("machine::memory_that_goes_before_its_machine_ends_the_process", "went before its virtual machine", || {
        let _alone = alone();
        assert_eq!(hv_vm_create(null_mut()), SUCCESS);
        let memory = Memory::new(0x4000);
        assert_eq!(hv_vm_map(memory.host(), 0x4000, 0x4000, ALL), SUCCESS);
        drop(memory);
        hv_vm_destroy();
    });
}
