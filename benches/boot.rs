//! `cargo bench --bench boot`: the same kernel and initramfs on minivmm and on QEMU's TCG, alternately, in one run.
//!
//! Prints medians and ratios for booting to power-off and for jobs in the guest, with the translating CPU and for some with the interpreting
//! one; then what minivmm alone is asked for: time to the first guest instruction, host memory beyond guest RAM, host CPU time of an idle guest.
//!
//! Needs `qemu-system-aarch64` on the PATH and the `shell` bundle (fetched if missing). `MINIVMM_BENCH_RUNS` sets the number of
//! runs (5), `MINIVMM_BENCH_QEMU` the QEMU to compare with.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use minivmm_firmware::bundle::cpio::Archive;

const MINIVMM: &str = env!("CARGO_BIN_EXE_minivmm");
const MEMORY_MIB: u64 = 512;
/// A run that takes longer is broken.
const LONGEST_RUN: Duration = Duration::from_secs(300);
/// How long the idle guest is watched.
const IDLE_SECONDS: u64 = 3;

/// PID 1 of the benchmark guest: without a job it powers off at once, a job is timed by the guest's clock, which follows the host's on
/// both machines.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null
mount -t proc proc /proc
mount -t devtmpfs dev /dev 2>/dev/null
job() {
    name=$1; shift
    read -r start _ </proc/uptime
    "$@" >/dev/null
    read -r end _ </proc/uptime
    echo "BENCH $name $start $end"
}
loop() { i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done; }
digest() { dd if=/dev/zero bs=1M count=64 2>/dev/null | sha256sum; }
squeeze() { i=0; while [ $i -lt 16 ]; do cat /bin/busybox; i=$((i + 1)); done | head -c 16777216 | gzip -9; }
float() { awk 'BEGIN { for (i = 1; i < 500000; i++) s += i * 1.5 / (i + 0.25); print s }'; }
order() { seq 150000 | sort -rn | sort -n; }
spawn() { i=0; while [ $i -lt 1000 ]; do /bin/busybox true; i=$((i + 1)); done; }
pair() { loop & loop; wait; }
for word in $(cat /proc/cmdline); do
    case $word in
    bench.loop) job loop loop ;;
    bench.hash) job hash digest ;;
    bench.gzip) job gzip squeeze ;;
    bench.awk) job awk float ;;
    bench.sort) job sort order ;;
    bench.fork) job fork spawn ;;
    bench.pair) job pair pair ;;
    bench.idle) echo "BENCH idle 0 0"; sleep 1000 ;;
    esac
done
poweroff -f
"#;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let runs = std::env::var("MINIVMM_BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(5);
    let directory = tempfile::tempdir()?;
    let guest = Guest::prepare(directory.path())?;
    let qemu = std::env::var("MINIVMM_BENCH_QEMU").unwrap_or_else(|_| "qemu-system-aarch64".into());
    let version = Command::new(&qemu).arg("--version").output().map_err(|error| format!("{qemu}: {error}"))?;
    let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned();
    println!("{runs} runs each, alternating; peer: {version}, -accel tcg,thread=multi -cpu cortex-a72\n");
    println!("| case | minivmm | QEMU TCG | ratio | minivmm, interpreting | ratio |\n|---|---|---|---|---|---|");
    for (name, cpus, word, interpreted) in [
        ("boot to power-off, 1 vCPU", 1, None, true),
        ("boot to power-off, 2 vCPUs", 2, None, true),
        ("integer loop in the guest's shell", 1, Some("loop"), true),
        ("two such loops on 2 vCPUs", 2, Some("pair"), false),
        ("sha256sum of 64 MiB", 1, Some("hash"), true),
        ("gzip -9 of 16 MiB", 1, Some("gzip"), false),
        ("floating point in awk", 1, Some("awk"), false),
        ("sort of 150,000 numbers, twice", 1, Some("sort"), false),
        ("1,000 processes", 1, Some("fork"), false),
    ] {
        let (mut ours, mut theirs, mut slow) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs {
            ours.push(guest.run(&TRANSLATING, cpus, word)?);
            theirs.push(guest.run(&Vmm::Qemu(&qemu), cpus, word)?);
            if interpreted {
                slow.push(guest.run(&INTERPRETING, cpus, word)?);
            }
        }
        let (ours, theirs) = (median(&mut ours), median(&mut theirs));
        print!("| {name} | {ours:.2} s | {theirs:.2} s | {:.2} |", ours / theirs);
        if interpreted {
            let slow = median(&mut slow);
            println!(" {slow:.2} s | {:.2} |", slow / theirs);
        } else {
            println!(" | |");
        }
    }
    let mut first: Vec<f64> = (0..runs).map(|_| guest.first_instruction()).collect::<Result<_>>()?;
    println!("| start of the process to the first guest instruction | {:.1} ms | | | | |", median(&mut first));
    let (memory, idle) = guest.idle()?;
    println!("| host memory beyond guest RAM | {memory:.1} MiB | | | | |");
    println!("| host CPU time of an idle guest | {idle:.2} % of a core | | | | |");
    Ok(())
}

enum Vmm<'a> {
    /// With this `--cpu-tier`.
    Minivmm(&'a str),
    Qemu(&'a str),
}

const TRANSLATING: Vmm<'static> = Vmm::Minivmm("translate");
const INTERPRETING: Vmm<'static> = Vmm::Minivmm("interpret");

/// The files that both machines boot.
struct Guest {
    kernel: PathBuf,
    initrd: PathBuf,
    directory: PathBuf,
}

impl Guest {
    /// The bundle's kernel and initramfs, with our PID 1 added.
    fn prepare(directory: &Path) -> Result<Self> {
        let path = || Command::new(MINIVMM).args(["bundle", "path", "shell"]).stderr(Stdio::null()).output();
        let mut bundle = path()?;
        if !bundle.status.success() {
            if !Command::new(MINIVMM).args(["bundle", "fetch", "shell"]).status()?.success() {
                return Err("the shell bundle cannot be fetched".into());
            }
            bundle = path()?;
        }
        let bundle = PathBuf::from(String::from_utf8(bundle.stdout)?.trim());
        let mut archive = Archive::new();
        archive.file("bench", 0o755, INIT.as_bytes().to_vec());
        let mut initrd = fs::read(bundle.join("initramfs"))?;
        // A further archive begins at a multiple of four bytes.
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        initrd.extend(archive.to_bytes().ok_or("the archive is too large")?);
        let file = directory.join("initramfs");
        fs::write(&file, initrd)?;
        Ok(Self { kernel: bundle.join("kernel"), initrd: file, directory: directory.to_owned() })
    }

    fn command(&self, vmm: &Vmm<'_>, cpus: u32, word: Option<&str>) -> Command {
        let word = word.map(|word| format!(" bench.{word}")).unwrap_or_default();
        let cmdline = format!("console=ttyAMA0 quiet panic=-1 rdinit=/bench{word}");
        let cpus = cpus.to_string();
        let mut command = match vmm {
            Vmm::Minivmm(tier) => {
                let mut command = Command::new(MINIVMM);
                command.args(["boot", "--quiet", "--hypervisor", "soft", "--cpu-tier", tier, "--cpus", &cpus]);
                command.arg("--memory").arg(format!("{MEMORY_MIB}M"));
                command
                    .arg("--cmdline")
                    .arg(cmdline)
                    .arg("--console")
                    .arg(format!("file={}", self.console().display()));
                command.arg("--kernel").arg(&self.kernel).arg("--initrd").arg(&self.initrd);
                command
            }
            Vmm::Qemu(qemu) => {
                let mut command = Command::new(qemu);
                command.args(["-M", "virt,gic-version=3", "-cpu", "cortex-a72", "-accel", "tcg,thread=multi"]);
                command.args(["-m", &MEMORY_MIB.to_string(), "-smp", &cpus]);
                command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
                command.arg("-append").arg(cmdline).arg("-serial").arg(format!("file:{}", self.console().display()));
                command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn console(&self) -> PathBuf {
        self.directory.join("console")
    }

    /// Seconds: of the whole process without a job, of the job by the guest's clock with one.
    fn run(&self, vmm: &Vmm<'_>, cpus: u32, word: Option<&str>) -> Result<f64> {
        let start = Instant::now();
        let mut child = self.command(vmm, cpus, word).spawn()?;
        while child.try_wait()?.is_none() {
            if start.elapsed() > LONGEST_RUN {
                child.kill()?;
                child.wait()?;
                return Err("a guest did not power off in time".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let wall = start.elapsed().as_secs_f64();
        let Some(word) = word else { return Ok(wall) };
        let console = fs::read_to_string(self.console())?;
        let none = || format!("no result in: {console}");
        let line = console.lines().find(|line| line.contains(&format!("BENCH {word} "))).ok_or_else(none)?;
        let times: Vec<f64> = line.split(' ').skip(2).filter_map(|time| time.trim().parse().ok()).collect();
        match times[..] {
            [start, end] => Ok(end - start),
            _ => Err(none().into()),
        }
    }

    /// Milliseconds from the start of the process to the first guest instruction.
    fn first_instruction(&self) -> Result<f64> {
        let stats = self.directory.join("stats.json");
        let status = self.command(&TRANSLATING, 1, None).arg("--stats").arg(&stats).status()?;
        if !status.success() {
            return Err("minivmm failed".into());
        }
        let report: serde_json::Value = serde_json::from_slice(&fs::read(&stats)?)?;
        let us = report["stages_us"]["first_instruction"].as_f64().ok_or("no such stage in the statistics")?;
        Ok(us / 1000.0)
    }

    /// MiB beyond guest RAM, and percent of a core, of a guest that sleeps.
    fn idle(&self) -> Result<(f64, f64)> {
        let mut child = self.command(&TRANSLATING, 2, Some("idle")).spawn()?;
        let measured = self.watch_idle(&child);
        child.kill()?;
        child.wait()?;
        measured
    }

    fn watch_idle(&self, child: &Child) -> Result<(f64, f64)> {
        let deadline = Instant::now() + LONGEST_RUN;
        while !fs::read_to_string(self.console()).unwrap_or_default().contains("BENCH idle") {
            if Instant::now() > deadline {
                return Err("the guest did not come up".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // The kernel's last timers of start-up.
        std::thread::sleep(Duration::from_secs(2));
        let before = cpu_ticks(child.id())?;
        std::thread::sleep(Duration::from_secs(IDLE_SECONDS));
        let ticks = cpu_ticks(child.id())? - before;
        let per_second = rustix::param::clock_ticks_per_second();
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let percent = 100.0 * ticks as f64 / (per_second * IDLE_SECONDS) as f64;
        Ok((memory_beyond_ram(child.id())?, percent))
    }
}

/// User and system time of a process, in clock ticks.
fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold spaces; fields 14 and 15 are counted from behind it.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field =
        |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).ok_or("unknown format of /proc");
    Ok(field(11)? + field(12)?)
}

/// Resident memory without the mapping that is guest RAM, in MiB: the one of exactly its size. Generated code is mapped twice and
/// counted once, as proportional set size does.
fn memory_beyond_ram(pid: u32) -> Result<f64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut resident_kib, mut is_ram) = (0u64, false);
    for line in smaps.lines() {
        let kib = line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
        match (line.split(':').next(), kib) {
            (Some("Size"), Some(kib)) => is_ram = kib == MEMORY_MIB * 1024,
            (Some("Pss"), Some(kib)) if !is_ram => resident_kib += kib,
            _ => {}
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    Ok(resident_kib as f64 / 1024.0)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
