//! The interrupt controller inside the framework: behaviours 29 to 37.

use minivmm_hvf_sim::{Clock, Knobs};

use crate::client::*;
use crate::{mrs, put_vectors, vcpu_wrote};

#[test]
fn b29_with_an_interrupt_controller_none_of_that_exits() {
    let machine = Machine::with_gic();
    put_vectors(&machine);
    let vcpu = Vcpu::ready();
    assert_eq!(vcpu.mrs(&machine, 0xc660), 1023);
    assert_eq!(vcpu.load(&machine, GICD + 0xffe8), 0x3b);
    vcpu.mrs(&machine, 0xdf01);
    // The timer interrupt, PPI 27, ends WFI without an exit.
    vcpu.store(&machine, GICD, 3);
    vcpu.store(&machine, GICR + 0x14, 0);
    vcpu.store(&machine, GICR + 0x1_0080, 1 << 27);
    vcpu.store(&machine, GICR + 0x1_0100, 1 << 27);
    vcpu.msr(&machine, 0xc230, 0xff);
    vcpu.msr(&machine, 0xc667, 1);
    vcpu.set_sys(0xdf1a, mach_absolute_time() + 24_000);
    vcpu.set_sys(0xdf19, 1);
    assert_eq!(vcpu.execute(&machine, &[WFI, mrs(0xc662, 2)], 0, 0), 27);
    // Nothing pending: only a cancel ends it.
    vcpu.set_sys(0xdf19, 0);
    machine.ram.put(0x4000, &[STR, WFI, 0x17ff_ffff]);
    vcpu.set(PC, RAM + 0x4000);
    vcpu.set(1, DATA);
    let id = vcpu.id;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            vcpu_wrote(&machine);
            hv_vcpus_exit(&raw const id, 1)
        });
        assert_eq!(vcpu.run().reason, CANCELED);
    });
}

#[test]
fn b30_interrupt_controller_comes_before_vcpus_and_needs_its_redistributors() {
    let machine = Machine::plain();
    let config = hv_gic_config_create();
    assert_eq!(hv_gic_create(config), BAD_ARGUMENT, "no redistributors");
    assert_eq!(hv_gic_config_set_redistributor_base(config, GICR + 0x1000), BAD_ARGUMENT);
    assert_eq!(hv_gic_config_set_redistributor_base(config, !0xffff), BAD_ARGUMENT);
    assert_eq!(hv_gic_config_set_msi_interrupt_range(config, 16, 4), BAD_ARGUMENT);
    assert_eq!(hv_gic_config_set_redistributor_base(config, GICR), SUCCESS);
    let vcpu = Vcpu::fresh();
    assert_eq!(hv_gic_create(config), ERROR, "a vCPU exists");
    drop(vcpu);
    assert_eq!(hv_gic_create(config), SUCCESS, "redistributors alone suffice");
    os_release(config);
    drop(machine);
    let _alone = alone();
    let config = hv_gic_config_create();
    assert_eq!(hv_gic_config_set_redistributor_base(config, GICR), SUCCESS);
    assert_eq!(hv_gic_create(config), NO_DEVICE, "no machine");
    os_release(config);
}

#[test]
fn b31_sizes_and_numbers_are_those_of_an_m5() {
    let machine = Machine::with_gic();
    assert_eq!(ask!(hv_gic_get_distributor_size()), 0x1_0000usize);
    assert_eq!(ask!(hv_gic_get_redistributor_size()), 0x2_0000usize);
    assert_eq!(ask!(hv_gic_get_redistributor_region_size()), 32usize << 20);
    assert_eq!(ask!(hv_gic_get_msi_region_size()), 0x1_0000usize);
    let (mut first, mut count) = (0, 0);
    assert_eq!(hv_gic_get_spi_interrupt_range(&raw mut first, &raw mut count), SUCCESS);
    assert_eq!((first, count), (32, 988));
    // PMU, maintenance, physical timer of EL2, virtual and physical timer of EL1
    for intid in [23, 25, 26, 27, 30] {
        assert_eq!(ask!(hv_gic_get_intid(intid)), u32::from(intid));
    }
    let mut intid = 0;
    assert_eq!(hv_gic_get_intid(28, &raw mut intid), BAD_ARGUMENT);
    // Behind the frames there is a device, or the region swallows it.
    let behind = GICR + (16 << 20);
    machine.code(&[STR, HVC]);
    let vcpu = Vcpu::ready();
    vcpu.set(1, behind);
    assert_eq!(vcpu.exception().class(), 0x24);
    drop((vcpu, machine));
    let machine = Machine::with(Knobs { absorb: true, ..Knobs::default() }, Clock::Host);
    machine.add_gic();
    machine.code(&[STR, HVC]);
    let vcpu = Vcpu::ready();
    vcpu.set(1, behind);
    vcpu.set(0, 0);
    assert_eq!(vcpu.exception().class(), 0x16);
}

#[test]
fn b32_redistributors_follow_creation_and_affinity_follows_mpidr() {
    let machine = Machine::with_gic();
    let first = Vcpu::without_affinity();
    let mut value = 0;
    assert_eq!(hv_gic_get_redistributor_reg(first.id, 8, &raw mut value), DENIED, "MPIDR_EL1 is not set");
    first.enable_spi(&machine, 40);
    assert_eq!(hv_gic_set_spi(40, true), SUCCESS);
    assert_eq!(first.highest(&machine), 1023, "routed to affinity 0, which nobody has yet");
    first.set_sys(0xc005, 7);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let second = Vcpu::fresh();
            second.set_sys(0xc005, 3);
            assert_eq!(ask!(hv_gic_get_redistributor_base(second.id)), GICR + 0x2_0000);
            assert_eq!(ask!(hv_gic_get_redistributor_reg(second.id, 8)), 3u64 << 32 | 1 << 8 | 1 << 4);
        });
    });
    assert_eq!(ask!(hv_gic_get_redistributor_base(first.id)), GICR);
    assert_eq!(ask!(hv_gic_get_redistributor_reg(first.id, 8)), 7u64 << 32, "not the last");
    drop(first);
    drop(machine);
}

#[test]
fn b33_spi_obeys_its_trigger_and_wakes_a_sleeping_vcpu() {
    let machine = Machine::with_gic();
    let vcpu = Vcpu::ready();
    vcpu.enable_spi(&machine, 40);
    assert_eq!(hv_gic_set_spi(31, true), BAD_ARGUMENT);
    assert_eq!(hv_gic_set_spi(1020, true), BAD_ARGUMENT);
    assert_eq!(hv_gic_set_spi(905, true), BAD_ARGUMENT, "an MSI");
    assert_eq!(hv_gic_send_msi(MSI + 0x40, 40), BAD_ARGUMENT, "not an MSI");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            vcpu_wrote(&machine);
            assert_eq!(hv_gic_set_spi(40, true), SUCCESS);
        });
        assert_eq!(vcpu.execute(&machine, &[STR, WFI, mrs(0xc662, 2)], DATA, 1), 40);
    });
    assert_eq!(hv_gic_set_spi(40, false), SUCCESS);
    assert_eq!(vcpu.highest(&machine), 1023);
    // Edge: one interrupt for each `true`, none for `false`.
    vcpu.store(&machine, GICD + 0xc00 + 8, 2 << 16);
    for _ in 0..2 {
        assert_eq!(hv_gic_set_spi(40, true), SUCCESS);
        assert_eq!(vcpu.acknowledge(&machine), 40);
        vcpu.end(&machine, 40);
        assert_eq!(vcpu.highest(&machine), 1023);
    }
    assert_eq!(hv_gic_set_spi(40, false), SUCCESS);
    assert_eq!(vcpu.highest(&machine), 1023);
}

#[test]
fn b34_level_that_stays_fires_again_and_one_that_goes_is_lost() {
    let machine = Machine::with_gic();
    let vcpu = Vcpu::ready();
    vcpu.enable_spi(&machine, 40);
    assert_eq!(hv_gic_set_spi(40, true), SUCCESS);
    assert_eq!(vcpu.acknowledge(&machine), 40);
    vcpu.end(&machine, 40);
    assert_eq!(vcpu.highest(&machine), 40);
    assert_eq!(hv_gic_set_spi(40, false), SUCCESS);
    assert_eq!(vcpu.acknowledge(&machine), 1023);
}

#[test]
fn b35_spi_routed_to_nobody_is_lost_for_good() {
    let machine = Machine::with_gic();
    let vcpu = Vcpu::ready();
    vcpu.enable_spi(&machine, 40);
    // GICD_IROUTER40 = affinity 9
    assert_eq!(hv_gic_set_distributor_reg(0x6000 + 8 * 40, 9), SUCCESS);
    vcpu.set_sys(0xc005, 9);
    assert_eq!(hv_gic_set_spi(40, true), SUCCESS);
    assert_eq!(vcpu.highest(&machine), 1023);
}

/// The blob of the present state.
fn blob() -> Vec<u8> {
    let state = hv_gic_state_create();
    assert!(!state.is_null());
    let len: usize = ask!(hv_gic_state_get_size(state));
    let mut blob = vec![0; len];
    assert_eq!(hv_gic_state_get_data(state, blob.as_mut_ptr().cast()), SUCCESS);
    os_release(state);
    blob
}

fn set_blob(blob: &[u8]) -> i32 {
    hv_gic_set_state(blob.as_ptr().cast(), blob.len())
}

#[test]
fn b36_state_is_a_blob_that_is_checked_and_leaves_the_cpu_interfaces_out() {
    let machine = Machine::with_gic();
    let vcpu = Vcpu::ready();
    vcpu.enable_spi(&machine, 40);
    let saved = blob();
    assert_eq!(saved.len(), 126_314);
    assert_eq!(set_blob(&saved), BUSY, "a vCPU ran");
    drop((vcpu, machine));
    let _machine = Machine::with_gic();
    assert_eq!(set_blob(&saved), BUSY, "no vCPU yet");
    let vcpu = Vcpu::ready();
    let mut broken = saved.clone();
    broken[0] ^= 1;
    assert_eq!(set_blob(&broken), BAD_ARGUMENT);
    let mut other = saved.clone();
    other[8] ^= 1;
    assert_eq!(set_blob(&other), BAD_ARGUMENT, "what it holds is covered by a checksum");
    assert_eq!(set_blob(&saved[..100]), BAD_ARGUMENT);
    assert_eq!(set_blob(&saved), SUCCESS);
    assert_eq!(ask!(hv_gic_get_distributor_reg(0x104)), 1u64 << 8);
    assert_eq!(ask!(hv_gic_get_icc_reg(vcpu.id, 0xc230)), 0u64, "ICC_PMR_EL1");
}

#[test]
fn b37_registers_do_not_show_what_is_on_its_way_to_a_vcpu() {
    let machine = Machine::with_gic();
    let vcpu = Vcpu::ready();
    vcpu.enable_spi(&machine, 40);
    assert_eq!(hv_gic_set_spi(40, true), SUCCESS);
    assert_eq!(vcpu.highest(&machine), 40);
    assert_eq!(ask!(hv_gic_get_distributor_reg(0x204)), 0u64);
    assert_eq!(vcpu.load(&machine, GICD + 0x204), 1 << 8, "the guest sees it");
}
