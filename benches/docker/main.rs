//! `cargo bench --bench docker`: the bundle `docker` on minivmm and on QEMU's TCG, alternately: the same kernel, initramfs, root and kind of data
//! disk, and the docker CLI inside the guest, so that neither has a relay in its way.
//!
//! Prints, as medians in seconds of the host's clock: from the start of the process to a dockerd that takes requests, `docker import` of
//! busybox, the first and the second `docker run --rm`, which stage of the start takes how long, and what an idle machine takes of memory.
//! Needs `qemu-system-aarch64`; `MINIVMM_BENCH_RUNS` sets the number of runs (3), `MINIVMM_BENCH_QEMU` the QEMU, `MINIVMM_BENCH_CPUS` the vCPUs (2).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use measuring::{Result, median, number};
use minivmm::docker::requests::base64;
use minivmm_firmware::bundle::BundleStore;
use minivmm_firmware::guest::docker::{COMMAND_LINE, DATA_SERIAL, REPORT, ROOT_SERIAL};

#[path = "../measuring/mod.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod measuring;

const MINIVMM: &str = env!("CARGO_BIN_EXE_minivmm");
const MEMORY_MIB: u64 = 1536;
const DATA_BYTES: u64 = 16 << 30;
/// A run that takes longer is broken.
const LONGEST_RUN: Duration = Duration::from_secs(1200);
/// Run in the guest when dockerd takes requests; `report` says when each step is done.
const COMMANDS: &str = "mkdir -p /tmp/i/bin && cp /usr/bin/busybox /tmp/i/bin/true && tar -C /tmp/i -c . | docker import - box >/dev/null && \
    report imported; docker run --rm box true && report first; docker run --rm box true && report second; sleep 10; \
    report used-$(free -m | awk '/Mem/ {print $3}'); sleep 5; poweroff -f";
/// Reports in their order, and what the time since the one before is called.
const STAGES: [(&str, &str); 8] = [
    ("init", "kernel"),
    ("data", "init: mounts, data disk"),
    ("dockerd-started", "modules, containerd begins"),
    ("docker", "containerd and dockerd"),
    ("imported", "docker import"),
    ("first", "first docker run --rm"),
    ("second", "second docker run --rm"),
    ("used", "idle"),
];

fn main() -> Result<()> {
    let (runs, cpus) = (number("MINIVMM_BENCH_RUNS", 3), number("MINIVMM_BENCH_CPUS", 2));
    let qemu = std::env::var("MINIVMM_BENCH_QEMU").unwrap_or_else(|_| "qemu-system-aarch64".into());
    let bundle = BundleStore::of_user()?
        .find("docker")
        .map_err(|error| format!("{error}; `minivmm bundle build docker` makes it"))?;
    let directory = tempfile::tempdir()?;
    let guest = Guest {
        kernel: bundle.kernel(),
        initramfs: bundle.initramfs(),
        root: bundle.root().ok_or("no root")?,
        directory: directory.path(),
        cpus,
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        ours.push(guest.run(None)?);
        theirs.push(guest.run(Some(&qemu))?);
    }
    println!(
        "{runs} runs each, alternating; {cpus} vCPUs, {MEMORY_MIB} MiB; peer: {qemu}, -accel tcg,thread=multi -cpu cortex-a72\n"
    );
    println!("| what | minivmm | QEMU TCG | ratio |\n|---|---|---|---|");
    let until = |report: &'static str| move |run: &Run| run.at(report);
    row("start to dockerd taking requests", &ours, &theirs, until("docker"));
    for (index, (report, name)) in STAGES.iter().enumerate().skip(4).take(3) {
        let before = STAGES.get(index - 1).map_or("", |(before, _)| before);
        row(name, &ours, &theirs, move |run: &Run| run.at(report) - run.at(before));
    }
    println!(
        "| guest memory in use, MiB | {:.0} | {:.0} | |",
        middle(&ours, |run| run.guest_mib),
        middle(&theirs, |run| run.guest_mib)
    );
    println!(
        "| host memory of the process, MiB | {:.0} | {:.0} | |\n",
        middle(&ours, |run| run.host_mib),
        middle(&theirs, |run| run.host_mib)
    );
    let total = middle(&ours, until("docker"));
    let mut before = 0.0;
    for (report, name) in STAGES.iter().take(4) {
        let now = middle(&ours, until(report));
        let share = 100.0 * (now - before) / total;
        println!(
            "{name:<28} {:>5.1} s {share:>3.0} % {}",
            now - before,
            "#".repeat((0..100).step_by(2).take_while(|at| f64::from(*at) < share).count())
        );
        before = now;
    }
    Ok(())
}

fn row(name: &str, ours: &[Run], theirs: &[Run], value: impl Fn(&Run) -> f64) {
    let (ours, theirs) = (middle(ours, &value), middle(theirs, &value));
    println!("| {name} | {ours:.1} s | {theirs:.1} s | {:.2} |", ours / theirs);
}

/// The median.
fn middle(runs: &[Run], value: impl Fn(&Run) -> f64) -> f64 {
    median(&mut runs.iter().map(value).collect::<Vec<f64>>())
}

/// What one run was like.
#[derive(Debug, Default)]
struct Run {
    /// Report, and seconds since the start of the process.
    reports: Vec<(String, f64)>,
    guest_mib: f64,
    host_mib: f64,
}

impl Run {
    fn at(&self, report: &str) -> f64 {
        self.reports.iter().find(|(name, _)| name == report).map_or(f64::NAN, |(_, at)| *at)
    }
}

struct Guest<'d> {
    kernel: PathBuf,
    initramfs: PathBuf,
    root: PathBuf,
    directory: &'d Path,
    cpus: usize,
}

impl Guest<'_> {
    /// On minivmm, or on the QEMU that is named.
    fn run(&self, qemu: Option<&str>) -> Result<Run> {
        let (data, console) = (self.directory.join("data.img"), self.directory.join("console"));
        File::create(&data)?.set_len(DATA_BYTES)?;
        File::create(&console)?;
        let mut command = match qemu {
            None => self.minivmm(&data, &console),
            Some(qemu) => self.qemu(qemu, &data, &console),
        };
        let start = Instant::now();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let run = watch(&mut child, &console, start);
        if run.is_err() {
            child.kill()?;
        }
        child.wait()?;
        run
    }

    fn words(&self) -> String {
        format!("{COMMAND_LINE} minivmm.after={}", base64(COMMANDS))
    }

    fn minivmm(&self, data: &Path, console: &Path) -> Command {
        let mut command = Command::new(MINIVMM);
        command.args(["boot", "--quiet", "--hypervisor", "soft"]);
        command.args([
            "--cpus",
            &self.cpus.to_string(),
            "--memory",
            &MEMORY_MIB.to_string(),
            "--cmdline",
            &self.words(),
        ]);
        command.arg("--kernel").arg(&self.kernel).arg("--initrd").arg(&self.initramfs);
        command.arg("--disk").arg(format!("{},ro,serial={ROOT_SERIAL}", self.root.display()));
        command.arg("--disk").arg(format!("{},serial={DATA_SERIAL}", data.display()));
        command.arg("--console").arg(format!("file={}", console.display()));
        command
    }

    fn qemu(&self, qemu: &str, data: &Path, console: &Path) -> Command {
        let mut command = Command::new(qemu);
        command.args([
            "-M",
            "virt,gic-version=3",
            "-cpu",
            "cortex-a72",
            "-accel",
            "tcg,thread=multi",
            "-display",
            "none",
            "-no-reboot",
        ]);
        command.args([
            "-smp",
            &self.cpus.to_string(),
            "-m",
            &MEMORY_MIB.to_string(),
            "-global",
            "virtio-mmio.force-legacy=false",
        ]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        command.arg("-append").arg(format!("console=ttyAMA0 panic=-1 quiet {}", self.words()));
        command.arg("-drive").arg(format!("if=none,id=root,format=raw,readonly=on,file={}", self.root.display()));
        command.args(["-device", &format!("virtio-blk-device,drive=root,serial={ROOT_SERIAL}")]);
        command.arg("-drive").arg(format!("if=none,id=data,format=raw,discard=unmap,file={}", data.display()));
        command.args(["-device", &format!("virtio-blk-device,drive=data,serial={DATA_SERIAL}")]);
        command.args([
            "-netdev",
            "user,id=net",
            "-device",
            "virtio-net-device,netdev=net",
            "-device",
            "virtio-rng-device",
        ]);
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command
    }
}

/// Notes when the guest reports what, until it has reported everything.
fn watch(child: &mut Child, console: &Path, start: Instant) -> Result<Run> {
    let mut run = Run::default();
    loop {
        let text = String::from_utf8_lossy(&fs::read(console)?).into_owned();
        let now = start.elapsed().as_secs_f64();
        let complete = text.rsplit_once('\n').map(|(complete, _)| complete).unwrap_or_default();
        let reports = complete.lines().filter_map(|line| line.trim_end().strip_prefix(REPORT)?.rsplit_once(' '));
        for (name, _) in reports.skip(run.reports.len()) {
            let (name, used) = name.split_once("used-").map_or((name, None), |(_, used)| ("used", Some(used)));
            run.reports.push((name.to_owned(), now));
            if let Some(used) = used {
                run.guest_mib = used.parse()?;
                run.host_mib = resident_mib(child.id())?;
                return Ok(run);
            }
        }
        if child.try_wait()?.is_some() || start.elapsed() > LONGEST_RUN {
            return Err(format!("the guest did not come to its end:\n{text}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn resident_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}
