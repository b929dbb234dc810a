//! A guest that sets up its interrupt controller and waits for the interrupt of one device.

/// `b .`
const LOOP: u32 = 0x1400_0000;
/// The interrupt that the guest waits for.
pub const INTID: u32 = 48;
/// Where the IRQ vector of the guest is, as a distance from its first instruction.
const IRQ_VECTOR_BYTES: usize = 0x1000 + 0x280;

/// The guest: with a device's address in x0 it enables [`INTID`], level-triggered, for vCPU 0, stores a byte to the device and executes `wait`.
/// The interrupt's vector acknowledges it, stores its number to the device's address + 4 as a word, ends it, and executes `last`.
pub fn guest(wait: &[u32], last: u32) -> Vec<u32> {
    let mut code = vec![
        0xd2a1_0002, // mov x2, #0x0800_0000: the distributor
        0x5280_0243, // mov w3, #0x12
        0xb900_0043, // str w3, [x2]: GICD_CTLR, affinity routing and group 1
        0x52a0_0023, // mov w3, #0x10000
        0xb900_8443, // str w3, [x2, #0x84]: GICD_IGROUPR1
        0xb901_0443, // str w3, [x2, #0x104]: GICD_ISENABLER1
        0xf930_c05f, // str xzr, [x2, #0x6180]: GICD_IROUTER48
        0xd2a1_0142, // mov x2, #0x080a_0000: the redistributor
        0xb900_145f, // str wzr, [x2, #0x14]: GICR_WAKER
        0xd280_1fe3, // mov x3, #0xff
        0xd518_4603, // msr ICC_PMR_EL1, x3
        0xd280_0023, // mov x3, #1
        0xd518_cce3, // msr ICC_IGRPEN1_EL1, x3
        0x1000_7e61, // adr x1, vectors: 0x1000 from the start
        0xd518_c001, // msr VBAR_EL1, x1
        0xd503_3fdf, // isb
        0xd503_42ff, // msr DAIFClr, #2
        0x3900_0001, // strb w1, [x0]
    ];
    code.extend(wait);
    code.resize(IRQ_VECTOR_BYTES / 4, LOOP);
    code.extend([
        0xd538_cc03, // mrs x3, ICC_IAR1_EL1
        0xb900_0403, // str w3, [x0, #4]
        0xd518_cc23, // msr ICC_EOIR1_EL1, x3
        last,
    ]);
    code
}
