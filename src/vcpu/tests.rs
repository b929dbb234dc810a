use minivmm_aarch64::{Intid, SysReg};

use super::*;
use crate::hypervisor::{InterruptInputs, Irqchip, Registers};

/// A back end whose vCPUs execute a script: one `Step` per entry, then they spin until kicked.
struct Scripted {
    scripts: Mutex<Vec<Vec<Step>>>,
    log: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Call([u64; 4]),
    Fail,
    Panic,
}

struct NoInputs;

impl InterruptInputs for NoInputs {
    fn set_irq(&self, _: u32, _: bool) {}
    fn set_fiq(&self, _: u32, _: bool) {}
}

impl Vm for Scripted {
    fn irqchip(&self) -> Irqchip {
        Irqchip::Emulated(Arc::new(NoInputs))
    }

    fn vcpu_builder(&self, index: u32) -> Box<dyn VcpuBuilder> {
        let mut script = std::mem::take(&mut self.scripts.lock().unwrap()[index as usize]);
        script.reverse();
        Box::new(ScriptedVcpu {
            index,
            script,
            x: [0; 31],
            kick: Arc::new((Mutex::new(false), Condvar::new())),
            log: self.log.clone(),
        })
    }
}

struct ScriptedVcpu {
    index: u32,
    script: Vec<Step>,
    x: [u64; 31],
    kick: Arc<(Mutex<bool>, Condvar)>,
    log: Arc<Mutex<Vec<String>>>,
}

impl VcpuBuilder for ScriptedVcpu {
    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, HypervisorError> {
        Ok(self)
    }

    fn kicker(&self) -> Kicker {
        let kick = self.kick.clone();
        Kicker::new(move || {
            *kick.0.lock().unwrap() = true;
            kick.1.notify_all();
        })
    }
}

impl Vcpu for ScriptedVcpu {
    fn start(&mut self, entry: GuestAddress, context: u64) -> Result<(), HypervisorError> {
        self.log.lock().unwrap().push(format!("{} starts at {:#x} with {context:#x}", self.index, entry.0));
        Ok(())
    }

    fn run(&mut self, _: &dyn GuestIo) -> Result<VcpuStop, HypervisorError> {
        match self.script.pop() {
            Some(Step::Call(registers)) => {
                self.x[..4].copy_from_slice(&registers);
                Ok(VcpuStop::Hypercall)
            }
            Some(Step::Fail) => Err(HypervisorError::Run { index: self.index, pc: 0x40, reason: "halt".to_owned() }),
            Some(Step::Panic) => panic!("scripted panic"),
            None => {
                let mut kicked = self.kick.0.lock().unwrap();
                while !*kicked {
                    kicked = self.kick.1.wait(kicked).unwrap();
                }
                *kicked = false;
                Ok(VcpuStop::Kicked)
            }
        }
    }

    fn registers(&mut self) -> &mut dyn Registers {
        self
    }

    fn counters(&self) -> Counters {
        vec![("x0", self.x[0])]
    }
}

impl Registers for ScriptedVcpu {
    fn x(&self, number: u8) -> u64 {
        self.x[usize::from(number)]
    }

    fn set_x(&mut self, number: u8, value: u64) {
        self.x[usize::from(number)] = value;
    }

    fn pc(&self) -> u64 {
        0
    }
}

struct NoIo;

impl GuestIo for NoIo {
    fn mmio_read(&self, _: GuestAddress, _: &mut [u8]) {}
    fn mmio_write(&self, _: GuestAddress, _: &[u8]) {}
    fn read_sysreg(&self, _: u32, _: SysReg) -> Option<u64> {
        None
    }
    fn write_sysreg(&self, _: u32, _: SysReg, _: u64) -> bool {
        false
    }
    fn set_ppi(&self, _: u32, _: Intid, _: bool) {}
}

struct Rig {
    set: VcpuSet,
    events: mpsc::Receiver<VcpuEvent>,
    log: Arc<Mutex<Vec<String>>>,
}

const ENTRY: GuestAddress = GuestAddress(0x8020_0000);

fn rig(scripts: &[&[Step]]) -> Rig {
    let log = Arc::new(Mutex::new(Vec::new()));
    let vm = Scripted { scripts: Mutex::new(scripts.iter().map(|script| script.to_vec()).collect()), log: log.clone() };
    let (sender, events) = mpsc::channel();
    let context = VcpuContext {
        io: Arc::new(NoIo),
        on_event: Arc::new(move |event| drop(sender.send(event))),
        first_instruction: Arc::new(|| ()),
        ram: 0x8000_0000..0x9000_0000,
    };
    let set = VcpuSet::new(&vm, u32::try_from(scripts.len()).unwrap(), ENTRY, 0x8000_0000, &context).unwrap();
    Rig { set, events, log }
}

const CPU_ON: [u64; 4] = [psci::CPU_ON_64 as u64, 1, 0x8040_0000, 7];
const CPU_OFF: [u64; 4] = [psci::CPU_OFF as u64, 0, 0, 0];
const SYSTEM_OFF: [u64; 4] = [psci::SYSTEM_OFF as u64, 0, 0, 0];
const SYSTEM_RESET: [u64; 4] = [psci::SYSTEM_RESET as u64, 0, 0, 0];

#[test]
fn vcpu_0_starts_at_the_entry_with_the_device_tree() {
    let rig = rig(&[&[Step::Call(SYSTEM_OFF)]]);
    rig.set.resume();
    assert!(matches!(rig.events.recv().unwrap(), VcpuEvent::PowerOff));
    assert_eq!(*rig.log.lock().unwrap(), ["0 starts at 0x80200000 with 0x80000000"]);
}

#[test]
fn nothing_runs_before_resume() {
    let mut rig = rig(&[&[Step::Call(SYSTEM_OFF)]]);
    rig.set.join();
    assert!(rig.log.lock().unwrap().is_empty());
    assert!(rig.events.try_recv().is_err());
}

#[test]
fn cpu_on_starts_the_target_at_its_entry_with_its_context() {
    let rig = rig(&[&[Step::Call(CPU_ON)], &[Step::Call(SYSTEM_RESET)]]);
    rig.set.resume();
    assert!(matches!(rig.events.recv().unwrap(), VcpuEvent::Reset));
    assert_eq!(rig.log.lock().unwrap()[1], "1 starts at 0x80400000 with 0x7");
}

#[test]
fn vcpu_that_switched_itself_off_can_be_started_again() {
    // vCPU 2 starts vCPU 1 again, over and over until it is off; the third script has to be started first.
    let start_2 = [psci::CPU_ON_64.into(), 2, 0x8060_0000, 0];
    let again: Vec<_> = std::iter::repeat_n(Step::Call(CPU_ON), 100_000).collect();
    let rig =
        rig(&[&[Step::Call(CPU_ON), Step::Call(start_2)], &[Step::Call(CPU_OFF), Step::Call(SYSTEM_OFF)], &again]);
    rig.set.resume();
    assert!(matches!(rig.events.recv().unwrap(), VcpuEvent::PowerOff));
    let log = rig.log.lock().unwrap();
    assert_eq!(log.iter().filter(|line| line.starts_with("1 starts at 0x80400000")).count(), 2);
}

#[test]
fn only_the_first_request_to_stop_counts() {
    let rig = rig(&[&[Step::Call(SYSTEM_OFF), Step::Call(SYSTEM_RESET)]]);
    rig.set.resume();
    assert!(matches!(rig.events.recv().unwrap(), VcpuEvent::PowerOff));
    rig.set.pause();
    assert!(rig.events.try_recv().is_err());
    assert!(!rig.set.is_running());
}

#[test]
fn pause_interrupts_a_vcpu_that_never_exits_by_itself() {
    let rig = rig(&[&[]]);
    rig.set.resume();
    while rig.log.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    rig.set.pause();
    assert!(!rig.set.is_running());
    assert!(rig.set.counters()[0].contains(&("exits_kicked", 1)));
    rig.set.resume();
    assert!(rig.set.is_running());
}

#[test]
fn machine_that_stopped_does_not_resume() {
    let rig = rig(&[&[Step::Call(SYSTEM_OFF)]]);
    rig.set.resume();
    assert!(matches!(rig.events.recv().unwrap(), VcpuEvent::PowerOff));
    rig.set.resume();
    assert!(!rig.set.is_running());
}

#[test]
fn answer_of_a_call_is_in_x0() {
    let on_self = [psci::CPU_ON_64.into(), 0, 0x8040_0000, 0];
    let rig = rig(&[&[Step::Call(on_self), Step::Call(CPU_OFF)]]);
    rig.set.resume();
    // CPU_OFF leaves x0 alone, so what is left of the two calls is the function identifier of the second.
    loop {
        let counters = rig.set.counters();
        if counters[0].contains(&("exits_hypercall", 2)) {
            assert!(counters[0].contains(&("x0", psci::CPU_OFF.into())));
            break;
        }
        std::thread::yield_now();
    }
}

#[test]
fn failing_vcpu_is_reported() {
    let rig = rig(&[&[Step::Fail]]);
    rig.set.resume();
    let event = rig.events.recv().unwrap();
    assert!(matches!(event, VcpuEvent::Failed(HypervisorError::Run { pc: 0x40, .. })), "{event:?}");
    rig.set.pause();
}

#[test]
fn panicking_vcpu_is_reported() {
    let rig = rig(&[&[Step::Panic]]);
    rig.set.resume();
    assert!(matches!(rig.events.recv().unwrap(), VcpuEvent::Panicked(0)));
}

#[test]
fn affinities_find_their_vcpu() {
    assert_eq!(index_of(Mpidr::from_bits(0x100), 17), Some(16));
    assert_eq!(index_of(Mpidr::from_bits(0x101), 17), None);
}
