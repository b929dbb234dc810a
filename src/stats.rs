//! Counters and boot stages, as JSON with stable names.
//!
//! Who counts keeps plain counters of its own and hands them over when asked; this module only names and writes them.
//! Times are microseconds since the start of the process; a stage that was not reached is absent. A restart of the guest
//! stamps its stages anew and counts in `boots`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;
use serde_json::{Map, Value};

/// A moment in the life of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Memory is mapped and the vCPUs exist.
    VmCreated,
    /// vCPU 0 is about to execute its first instruction: the kernel's entry.
    FirstInstruction,
    /// The kernel printed its first character.
    FirstOutput,
    /// The kernel started its first user program.
    Init,
    /// The guest printed its first character on the virtio console: its shell is ready.
    Ready,
    /// The guest stopped.
    Stopped,
}

/// Names of the stages in the JSON, in the order of [`Stage`].
const STAGE_NAMES: [&str; 6] = ["vm_created", "first_instruction", "first_output", "init", "ready", "stopped"];

/// When the stages were reached. Any thread may stamp.
#[derive(Clone, Debug)]
pub struct Stages {
    start: Instant,
    /// Microseconds since `start`, plus one; zero is "not yet".
    reached: Arc<[AtomicU64; STAGE_NAMES.len()]>,
}

impl Stages {
    /// No stage of a process that started at `start`.
    #[must_use]
    pub fn new(start: Instant) -> Self {
        Self { start, reached: Arc::default() }
    }

    /// Notes that `stage` is reached at `now`, unless it was before.
    pub fn stamp(&self, stage: Stage, now: Instant) {
        let us = u64::try_from(now.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX - 1);
        if let Some(reached) = self.reached.get(stage as usize) {
            // Only the first stamp counts, and nothing else depends on it: the order does not matter.
            let _ = reached.compare_exchange(0, us + 1, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Forgets every stage: the machine starts again.
    pub fn restart(&self) {
        for reached in &*self.reached {
            reached.store(0, Ordering::Relaxed);
        }
    }

    /// When `stage` was reached, in microseconds since the process started.
    #[must_use]
    pub fn reached_us(&self, stage: Stage) -> Option<u64> {
        self.reached.get(stage as usize)?.load(Ordering::Relaxed).checked_sub(1)
    }

    fn to_json(&self) -> Value {
        let reached = self.reached.iter().map(|reached| reached.load(Ordering::Relaxed).checked_sub(1));
        let named = STAGE_NAMES.iter().zip(reached).filter_map(|(name, us)| Some(((*name).to_owned(), us?.into())));
        Value::Object(named.collect())
    }
}

/// Counters with stable names.
pub type Counters = Vec<(&'static str, u64)>;

/// What `--stats` writes.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Changes when a name changes its meaning or goes away.
    pub version: u32,
    /// The back end.
    pub hypervisor: &'static str,
    /// Size of guest memory.
    pub memory_bytes: u64,
    /// How often the machine was started: 1 without a reset.
    pub boots: u64,
    /// See [`Stage`].
    pub stages_us: Value,
    /// Per vCPU, of the present boot.
    pub vcpus: Vec<Value>,
    /// Per device, by name and place, of the present boot.
    pub devices: Map<String, Value>,
}

/// Version of the format.
const VERSION: u32 = 1;

impl Report {
    /// A report without counters.
    #[must_use]
    pub fn new(hypervisor: &'static str, memory_bytes: u64, boots: u64, stages: &Stages) -> Self {
        let (vcpus, devices) = (Vec::new(), Map::new());
        Self { version: VERSION, hypervisor, memory_bytes, boots, stages_us: stages.to_json(), vcpus, devices }
    }

    /// Adds the counters of the next vCPU.
    pub fn add_vcpu(&mut self, counters: &Counters) {
        self.vcpus.push(to_object(counters));
    }

    /// Adds counters of device `name`, to those it has.
    pub fn add_device(&mut self, name: &str, counters: &Counters) {
        let device = self.devices.entry(name).or_insert_with(|| Value::Object(Map::new()));
        if let (Value::Object(device), Value::Object(counters)) = (device, to_object(counters)) {
            device.extend(counters);
        }
    }

    /// Adds counters of device `name` as a group of their own.
    pub fn add_group(&mut self, name: &str, group: &str, counters: &Counters) {
        let device = self.devices.entry(name).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(device) = device {
            device.insert(group.to_owned(), to_object(counters));
        }
    }

    /// Writes the report to `path`, replacing what is there in one step.
    ///
    /// # Errors
    /// [`StatsError`].
    pub fn write(&self, path: &Path) -> Result<(), StatsError> {
        let failed = |source| StatsError { path: path.to_owned(), source };
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        std::fs::write(&temporary, text).map_err(failed)?;
        std::fs::rename(&temporary, path).map_err(failed)
    }
}

/// The report cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write statistics to {}", .path.display())]
pub struct StatsError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

fn to_object(counters: &Counters) -> Value {
    Value::Object(counters.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn first_stamp_counts_until_a_restart() {
        let start = Instant::now();
        let stages = Stages::new(start);
        stages.stamp(Stage::VmCreated, start + Duration::from_micros(30));
        stages.stamp(Stage::VmCreated, start + Duration::from_micros(50));
        assert_eq!(stages.reached_us(Stage::VmCreated), Some(30));
        stages.restart();
        assert_eq!(stages.reached_us(Stage::VmCreated), None);
    }

    #[test]
    fn report_is_json_with_stable_names() {
        let start = Instant::now();
        let stages = Stages::new(start);
        stages.stamp(Stage::FirstInstruction, start);
        let mut report = Report::new("soft", 1 << 30, 1, &stages);
        report.add_vcpu(&vec![("instructions", 7)]);
        report.add_device("pl011", &vec![("mmio_reads", 1)]);
        report.add_device("pl011", &vec![("mmio_writes", 2)]);
        report.add_group("fs", "requests", &vec![("lookup", 3)]);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stats.json");
        report.write(&path).unwrap();
        let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let expected = serde_json::json!({
            "version": 1, "hypervisor": "soft", "memory_bytes": 1_u64 << 30, "boots": 1,
            "stages_us": { "first_instruction": 0 },
            "vcpus": [{ "instructions": 7 }],
            "devices": {
                "pl011": { "mmio_reads": 1, "mmio_writes": 2 },
                "fs": { "requests": { "lookup": 3 } },
            },
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn report_that_cannot_be_written_names_its_path() {
        let report = Report::new("soft", 0, 1, &Stages::new(Instant::now()));
        let error = report.write(Path::new("/nonexistent/stats.json")).unwrap_err();
        assert_eq!(error.to_string(), "cannot write statistics to /nonexistent/stats.json");
    }
}
