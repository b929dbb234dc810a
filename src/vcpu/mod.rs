//! The vCPUs of a machine: one host thread each, and who of them runs.
//!
//! ```text
//!            CPU_ON                   first instruction
//!   Off ----------------> OnPending --------------------> On        (the guest's view, PSCI)
//!    ^                                                     |
//!    +------------------------- CPU_OFF -------------------+
//!
//!            pause, resume          SYSTEM_OFF, SYSTEM_RESET
//!   Paused <---------------> Running ------------------------> Stopped     (ours; all three go to Finished, which is final)
//! ```
//! A thread executes guest instructions only while its vCPU is not Off and the set is Running; otherwise it waits on one
//! condition variable, outside the guest. All of this state is behind one lock, which no thread holds while it runs the guest.
//! A change is always made under the lock first and then kicked, and the thread looks at the state before every entry, so a
//! kick that comes early, late or for nothing is harmless.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use minivmm_aarch64::Mpidr;
use vm_memory::GuestAddress;

use crate::hypervisor::psci::{self, Action, Power};
use crate::hypervisor::{GuestIo, HypervisorError, Kicker, Vcpu, VcpuBuilder, VcpuStop, Vm};

/// What a vCPU has to tell the machine.
#[derive(Debug)]
pub enum VcpuEvent {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest wants to start again.
    Reset,
    /// A vCPU cannot go on.
    Failed(HypervisorError),
    /// The thread of this vCPU panicked: a mistake of ours.
    Panicked(u32),
}

/// Why the vCPUs cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The host gives no thread.
    #[error("cannot start the thread of vCPU {index}")]
    Spawn {
        /// Which one.
        index: u32,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// The back end gives no vCPU.
    #[error(transparent)]
    Bind(#[from] HypervisorError),
    /// The thread ended before it had its vCPU.
    #[error("the thread of vCPU {0} ended at once")]
    Gone(u32),
}

/// What vCPUs share with the machine they belong to.
#[derive(Clone)]
pub struct VcpuContext {
    /// Answers their I/O.
    pub io: Arc<dyn GuestIo + Send>,
    /// Takes their events, on their threads.
    pub on_event: Arc<dyn Fn(VcpuEvent) + Send + Sync>,
    /// Called by vCPU 0 just before its first instruction.
    pub first_instruction: Arc<dyn Fn() + Send + Sync>,
    /// Guest-physical addresses that are RAM: where CPU_ON may start.
    pub ram: Range<u64>,
}

impl std::fmt::Debug for VcpuContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VcpuContext").field("ram", &self.ram).finish_non_exhaustive()
    }
}

/// What one vCPU did, by stable names.
pub type Counters = Vec<(&'static str, u64)>;

/// The vCPUs of one machine. Dropping it ends their threads.
#[derive(Debug)]
pub struct VcpuSet {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    kickers: Vec<Kicker>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Signalled after every change of `state`.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    run: RunState,
    cpus: Vec<Cpu>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunState {
    Paused,
    Running,
    /// The guest is off, or wants to start again.
    Stopped,
    Finished,
}

#[derive(Debug)]
struct Cpu {
    power: Power,
    /// Where an `OnPending` vCPU starts, and its x0.
    start: (u64, u64),
    /// Whether its thread is, or is about to be, in the guest.
    entered: bool,
    /// As of the last time it left the guest to wait.
    counters: Counters,
}

impl State {
    fn cpu(&mut self, index: u32) -> Option<&mut Cpu> {
        self.cpus.get_mut(usize::try_from(index).ok()?)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread of vCPU `index` ends without being asked to: nobody shall wait for it.
    fn leave_for_good(&self, index: u32) {
        let mut state = self.lock();
        if let Some(cpu) = state.cpu(index) {
            cpu.entered = false;
            cpu.power = Power::Off;
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl VcpuSet {
    /// Makes `count` vCPUs of `vm`, paused. vCPU 0 will start at `entry` with `context` in x0, the others are off: here, or in a back end that
    /// keeps power states itself, where they count as on for us.
    ///
    /// # Errors
    /// As [`VcpuError`] says; no thread is left behind.
    pub fn new(
        vm: &dyn Vm,
        count: u32,
        entry: GuestAddress,
        context: u64,
        with: &VcpuContext,
    ) -> Result<Self, VcpuError> {
        let cpu = |index| Cpu {
            power: match index {
                0 => Power::OnPending,
                _ if vm.keeps_power_states() => Power::On,
                _ => Power::Off,
            },
            start: (entry.0, context),
            entered: false,
            counters: Counters::new(),
        };
        let state = State { run: RunState::Paused, cpus: (0..count).map(cpu).collect() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mut set = Self { shared, threads: Vec::new(), kickers: Vec::new() };
        for index in 0..count {
            // One after the other: back ends may number vCPUs in the order they are made.
            set.spawn(vm.vcpu_builder(index), index, with.clone())?;
        }
        Ok(set)
    }

    fn spawn(&mut self, builder: Box<dyn VcpuBuilder>, index: u32, with: VcpuContext) -> Result<(), VcpuError> {
        self.kickers.push(builder.kicker());
        let (bound, is_bound) = mpsc::channel();
        let shared = self.shared.clone();
        let body = move || {
            let _sentinel = Sentinel { index, shared: shared.clone(), on_event: with.on_event.clone() };
            match builder.bind() {
                // The receiver waits for exactly one message; if it is gone, so is the machine.
                Err(error) => drop(bound.send(Err(error))),
                Ok(vcpu) => {
                    drop(bound.send(Ok(())));
                    VcpuThread { index, vcpu, shared, with, counts: Exits::default() }.run();
                }
            }
        };
        let thread = std::thread::Builder::new().name(format!("vcpu{index}")).spawn(body);
        self.threads.push(thread.map_err(|source| VcpuError::Spawn { index, source })?);
        is_bound.recv().map_err(|_| VcpuError::Gone(index))?.map_err(VcpuError::Bind)
    }

    /// Lets the vCPUs run.
    pub fn resume(&self) {
        let mut state = self.shared.lock();
        if state.run == RunState::Paused {
            state.run = RunState::Running;
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Returns when no vCPU executes guest instructions any more; [`Self::resume`] lets them go on where they were.
    pub fn pause(&self) {
        let mut state = self.shared.lock();
        if state.run == RunState::Running {
            state.run = RunState::Paused;
        }
        drop(state);
        self.kick_all();
        let mut state = self.shared.lock();
        while state.cpus.iter().any(|cpu| cpu.entered) {
            state = self.shared.wait(state);
        }
    }

    /// Makes every thread leave the guest for good. Returns at once; dropping the set waits for them.
    pub fn finish(&self) {
        self.shared.lock().run = RunState::Finished;
        self.shared.changed.notify_all();
        self.kick_all();
    }

    /// What each vCPU counted, up to its last wait: complete after [`Self::pause`] or [`Self::join`].
    #[must_use]
    pub fn counters(&self) -> Vec<Counters> {
        self.shared.lock().cpus.iter().map(|cpu| cpu.counters.clone()).collect()
    }

    /// Whether the vCPUs run, as far as we are concerned.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.shared.lock().run == RunState::Running
    }

    /// Ends all threads and waits for them.
    pub fn join(&mut self) {
        self.finish();
        for thread in self.threads.drain(..) {
            // A panic was reported as an event already.
            drop(thread.join());
        }
    }

    fn kick_all(&self) {
        for kicker in &self.kickers {
            kicker.kick();
        }
    }
}

impl Drop for VcpuSet {
    fn drop(&mut self) {
        self.join();
    }
}

/// Tells the machine when a vCPU's thread unwinds.
struct Sentinel {
    index: u32,
    shared: Arc<Shared>,
    on_event: Arc<dyn Fn(VcpuEvent) + Send + Sync>,
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.leave_for_good(self.index);
            (self.on_event)(VcpuEvent::Panicked(self.index));
        }
    }
}

/// How often `run` ended, by reason.
#[derive(Clone, Copy, Debug, Default)]
struct Exits {
    kicked: u64,
    hypercall: u64,
    parked: u64,
}

/// One vCPU on its thread.
struct VcpuThread {
    index: u32,
    vcpu: Box<dyn Vcpu>,
    shared: Arc<Shared>,
    with: VcpuContext,
    counts: Exits,
}

/// What the thread does next.
enum Order {
    Start { entry: u64, context: u64 },
    Continue,
    Finish,
}

impl VcpuThread {
    fn run(mut self) {
        let mut first = true;
        loop {
            match self.next_order() {
                Order::Finish => return,
                Order::Continue => {}
                Order::Start { entry, context } => {
                    if let Err(error) = self.vcpu.start(GuestAddress(entry), context) {
                        return self.fail(error);
                    }
                    if self.index == 0 && std::mem::take(&mut first) {
                        (self.with.first_instruction)();
                    }
                }
            }
            match self.vcpu.run(&*self.with.io) {
                Ok(VcpuStop::Kicked) => self.counts.kicked += 1,
                Ok(VcpuStop::Hypercall) => {
                    self.counts.hypercall += 1;
                    self.hypercall();
                }
                Ok(VcpuStop::PowerOff) => self.stop_machine(VcpuEvent::PowerOff),
                Ok(VcpuStop::Reset) => self.stop_machine(VcpuEvent::Reset),
                Err(error) => return self.fail(error),
            }
        }
    }

    /// Waits, outside the guest, until this vCPU may run or must end.
    fn next_order(&mut self) -> Order {
        let shared = self.shared.clone();
        let mut state = shared.lock();
        let mut published = false;
        loop {
            let run = state.run;
            let Some(cpu) = state.cpu(self.index) else {
                return Order::Finish;
            };
            let wait = run != RunState::Running || cpu.power == Power::Off;
            if wait && !published {
                published = true;
                self.counts.parked += 1;
                cpu.counters = self.counters();
                cpu.entered = false;
                shared.changed.notify_all();
            }
            match (run, cpu.power) {
                (RunState::Finished, _) => return Order::Finish,
                (RunState::Running, Power::On) => {
                    cpu.entered = true;
                    return Order::Continue;
                }
                (RunState::Running, Power::OnPending) => {
                    cpu.entered = true;
                    cpu.power = Power::On;
                    let (entry, context) = cpu.start;
                    return Order::Start { entry, context };
                }
                (RunState::Paused | RunState::Stopped, _) | (RunState::Running, Power::Off) => {
                    state = shared.wait(state)
                }
            }
        }
    }

    fn counters(&self) -> Counters {
        let Exits { kicked, hypercall, parked } = self.counts;
        let mut counters = vec![("exits_kicked", kicked), ("exits_hypercall", hypercall), ("parked", parked)];
        counters.extend(self.vcpu.counters());
        counters
    }

    /// Answers the SMCCC call in x0–x3. The lock is held from the look at the target's state to its change, so that of two
    /// simultaneous CPU_ON one sees the other.
    fn hypercall(&mut self) {
        let registers = self.vcpu.registers();
        let call = [registers.x(0), registers.x(1), registers.x(2), registers.x(3)];
        let shared = self.shared.clone();
        let mut state = shared.lock();
        let power = |mpidr| Some(state.cpus.get(index_of(mpidr, state.cpus.len())?)?.power);
        let platform = psci::Platform { power: &power, ram: self.with.ram.clone() };
        match psci::call(call, &platform) {
            Action::Return(value) => registers.set_x(0, value),
            Action::CpuOn { target, entry, context } => {
                let count = state.cpus.len();
                if let Some(cpu) = index_of(target, count).and_then(|index| state.cpus.get_mut(index)) {
                    cpu.power = Power::OnPending;
                    cpu.start = (entry, context);
                }
                registers.set_x(0, psci::status::SUCCESS.cast_unsigned());
                shared.changed.notify_all();
            }
            Action::CpuOff => {
                if let Some(cpu) = state.cpu(self.index) {
                    cpu.power = Power::Off;
                }
            }
            Action::PowerOff => {
                drop(state);
                self.stop_machine(VcpuEvent::PowerOff);
            }
            Action::Reset => {
                drop(state);
                self.stop_machine(VcpuEvent::Reset);
            }
        }
    }

    /// Lets no vCPU enter the guest again, then tells the machine: a guest that is off executes nothing more.
    fn stop_machine(&self, event: VcpuEvent) {
        let mut state = self.shared.lock();
        let first = matches!(state.run, RunState::Running | RunState::Paused);
        if first {
            state.run = RunState::Stopped;
        }
        drop(state);
        self.shared.changed.notify_all();
        if first {
            (self.with.on_event)(event);
        }
    }

    fn fail(self, error: HypervisorError) {
        self.shared.leave_for_good(self.index);
        (self.with.on_event)(VcpuEvent::Failed(error));
    }
}

/// The index of the vCPU with affinity `mpidr`, among `count`.
fn index_of(mpidr: Mpidr, count: usize) -> Option<usize> {
    let count = u32::try_from(count).ok()?;
    let index = (0..count).find(|&index| Mpidr::of_vcpu(index) == mpidr)?;
    usize::try_from(index).ok()
}

#[cfg(test)]
mod tests;
