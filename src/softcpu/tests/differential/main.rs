//! The software CPU against an independent processor: random instructions of every class that EL0 can run, with random
//! registers and memory, run here and on QEMU user mode, and everything they can change is compared.
//!
//! A run is its seed: `MINIVMM_DIFF_SEED` (default [`SEED`]), with `MINIVMM_DIFF_CASES` cases (default [`CASES`]).
//! `MINIVMM_DIFF_CASE=n` runs case `n` alone; `MINIVMM_DIFF_CLASS=name` draws only from the classes whose name contains `name`.
//! What is not compared, and why, is listed in module `known`; nothing else is excused.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "instruction fields and register views are cut out of wider values"
)]

mod case;
mod classes;
mod known;
mod oracle;
mod rng;
mod state;
mod subject;
mod values;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use case::Case;
use classes::Class;
use oracle::{Model, Oracle};
use state::{MAX_CASES, Outcome, Stop};
use subject::Subject;

/// The seed of a run that names none: CI always runs the same cases.
const SEED: u64 = 0x6d69_6e69_766d_6d00;
/// The cases of a run that names no number.
const CASES: u64 = 500_000;
/// Mismatches that are made small and printed in full; the others are only counted.
const MAX_PRINTED: usize = 12;
/// Mismatches of one class that are printed in full.
const MAX_PRINTED_PER_CLASS: usize = 3;

/// What the environment asks for.
struct Run {
    seed: u64,
    indices: std::ops::Range<u64>,
    class_filter: String,
}

impl Run {
    fn from_environment() -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            let parsed = match text.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16),
                None => text.parse(),
            };
            Some(parsed.unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
        };
        let indices = match number("MINIVMM_DIFF_CASE") {
            Some(index) => index..index + 1,
            None => 0..number("MINIVMM_DIFF_CASES").unwrap_or(CASES),
        };
        Self {
            seed: number("MINIVMM_DIFF_SEED").unwrap_or(SEED),
            indices,
            class_filter: std::env::var("MINIVMM_DIFF_CLASS").unwrap_or_default(),
        }
    }

    fn classes(&self) -> Vec<Class> {
        let chosen: Vec<_> =
            classes::all().into_iter().filter(|class| class.name.contains(&self.class_filter)).collect();
        assert!(!chosen.is_empty(), "no class has a name with \"{}\" in it", self.class_filter);
        chosen
    }

    /// The command that runs case `index` of this run alone.
    fn command(&self, index: u64) -> String {
        let class = match self.class_filter.as_str() {
            "" => String::new(),
            filter => format!(" MINIVMM_DIFF_CLASS='{filter}'"),
        };
        format!(
            "MINIVMM_DIFF_SEED={:#x} MINIVMM_DIFF_CASE={index}{class} cargo test -p minivmm-softcpu --test differential",
            self.seed
        )
    }
}

/// The two processors, side by side.
struct Bench {
    max: Oracle,
    a72: Oracle,
    subject: Subject,
}

impl Bench {
    fn new(program: &Path) -> Self {
        Self {
            max: Oracle::start(program, Model::Max),
            a72: Oracle::start(program, Model::CortexA72),
            subject: Subject::new(),
        }
    }

    /// Runs `cases`, whose slots differ, on both processors; the oracle works while we do.
    fn run(&mut self, cases: &[&Case]) -> Vec<(Outcome, Outcome)> {
        let mut outcomes: Vec<Option<(Outcome, Outcome)>> = vec![None; cases.len()];
        for (model, oracle) in [(Model::Max, &mut self.max), (Model::CortexA72, &mut self.a72)] {
            let of_model: Vec<usize> = (0..cases.len()).filter(|&i| cases[i].draft.model == model).collect();
            if of_model.is_empty() {
                continue;
            }
            oracle.send(of_model.iter().map(|&i| cases[i]));
            let batch: Vec<&Case> = of_model.iter().map(|&i| cases[i]).collect();
            let ours = self.subject.run(&batch);
            for ((i, theirs), ours) in of_model.iter().zip(oracle.receive(of_model.len())).zip(ours) {
                outcomes[*i] = Some((theirs, ours));
            }
        }
        outcomes.into_iter().map(|outcome| outcome.expect("every case has a model")).collect()
    }

    fn fails(&mut self, case: &Case) -> bool {
        let (theirs, ours) = self.run(&[case]).remove(0);
        !case.differences(&theirs, &ours).is_empty()
    }
}

/// What happened to the cases of one class.
#[derive(Debug, Default)]
struct Tally {
    cases: u64,
    undefined: u64,
    faults: u64,
    mismatches: usize,
}

#[test]
fn random_instructions_do_what_they_do_on_qemu() {
    let program = match Oracle::build() {
        Ok(program) => program,
        Err(missing) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot run in CI: {}", missing.0);
            println!("skipped: {}", missing.0);
            return;
        }
    };
    let run = Run::from_environment();
    let classes = run.classes();
    let mut bench = Bench::new(&program);
    let features = bench.subject.features();
    println!("seed {:#x}, cases {:?}, {} classes", run.seed, run.indices, classes.len());

    let start = Instant::now();
    let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
    let mut printed = 0;
    let indices: Vec<u64> = run.indices.clone().collect();
    for batch in indices.chunks(MAX_CASES) {
        let cases: Vec<Case> = batch.iter().map(|&index| Case::new(run.seed, index, &classes, &features)).collect();
        let outcomes = bench.run(&cases.iter().collect::<Vec<_>>());
        for (case, (theirs, ours)) in cases.iter().zip(&outcomes) {
            let tally = tallies.entry(case.class).or_default();
            tally.cases += 1;
            match theirs.stop {
                Stop::Break => {}
                Stop::Undefined => tally.undefined += 1,
                _ => tally.faults += 1,
            }
            let differences = case.differences(theirs, ours);
            if differences.is_empty() {
                continue;
            }
            tally.mismatches += 1;
            if printed < MAX_PRINTED && tally.mismatches <= MAX_PRINTED_PER_CLASS {
                printed += 1;
                print_mismatch(&run, &mut bench, case, &differences);
            }
        }
    }

    let count = indices.len();
    let seconds = start.elapsed().as_secs_f64();
    println!("{count} cases in {seconds:.1} s; per class: cases, undefined, faults, mismatches");
    for (name, tally) in &tallies {
        println!("{name:44} {:7} {:7} {:7} {:7}", tally.cases, tally.undefined, tally.faults, tally.mismatches);
    }
    let mismatches: usize = tallies.values().map(|tally| tally.mismatches).sum();
    assert_eq!(mismatches, 0, "{mismatches} of {count} cases differ from QEMU; seed {:#x}", run.seed);
}

/// Prints `case`, which showed `differences`, with as little state as still shows some.
fn print_mismatch(run: &Run, bench: &mut Bench, case: &Case, differences: &[String]) {
    if bench.fails(case) {
        let small = case.shrunk(|candidate| bench.fails(candidate));
        let (theirs, ours) = bench.run(&[&small]).remove(0);
        println!("{small}\n  {}", small.differences(&theirs, &ours).join("\n  "));
    } else {
        println!("{case}\n  {}", differences.join("\n  "));
        println!("  but agrees when it runs alone: one of the processors remembers the cases before it");
    }
    println!("  {}\n", run.command(case.index));
}
