//! `cargo bench --bench fs_guest`: a shared folder as a guest sees it, minivmm beside QEMU's TCG with virtiofsd, alternately, in one run; then an
//! npm-install-like tree on the share beside the same on a virtio disk with ext4 in the same guest.
//!
//! The same kernel, the same system ([`system`]), the same directory of the host. Times are the guest's clock's, medians are printed.
//!
//! Needs `qemu-system-aarch64`, `virtiofsd` (`/usr/libexec/virtiofsd` of Debian's package) and what the guest's system is made with.
//! `MINIVMM_BENCH_QEMU` and `MINIVMM_BENCH_VIRTIOFSD` name others, `MINIVMM_BENCH_RUNS` sets the number of runs (5), `MINIVMM_BENCH_FILES` the size
//! of the tree (30000), `MINIVMM_BENCH_SHARE` a directory to make the shared ones in: on a host whose disk takes milliseconds for an unlink,
//! nothing else can be measured. `MINIVMM_BENCH_SHARE_OPTIONS` goes behind minivmm's `--share` (`,poll=0`), `MINIVMM_BENCH_TRANSPORT` behind its
//! `--transport` (`pci`, as the peer's devices are). To look into one thing:
//! `MINIVMM_BENCH_JOBS` is a file with other jobs, an empty `MINIVMM_BENCH_QEMU` leaves the peer out, `MINIVMM_BENCH_STATS` is where minivmm's
//! `--stats` of the last run go.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use measuring::{Result, median, number, shell_bundle, version};
use minivmm_firmware::bundle::cpio::Archive;

#[path = "../measuring/mod.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod measuring;
#[path = "../../tests/support/system.rs"]
mod system;

const MINIVMM: &str = env!("CARGO_BIN_EXE_minivmm");
const INIT: &str = include_str!("init");
const MEMORY_MIB: u64 = 1024;
const CPUS: &str = "2";
/// A run that takes longer is broken.
const LONGEST_RUN: Duration = Duration::from_secs(1800);

/// Times a job by the guest's uptime.
const JOB: &str = r#"
job() {
    name=$1 operations=$2; shift 2
    read -r start _ </proc/uptime
    "$@" >/tmp/out 2>&1 || cat /tmp/out
    read -r end _ </proc/uptime
    ms=$(( 10#${end/./} * 10 - 10#${start/./} * 10 ))
    echo "BENCH $name $(( ms / 1000 )).$(printf %03d $(( ms % 1000 ))) $operations"
}
"#;

/// What both machines do. Most of the guest's memory is written to first, so that no case pays for what the host does then.
const JOBS: &str = r#"
head -c 480M /dev/zero >/tmp/touched; rm /tmp/touched
export GIT_CONFIG_GLOBAL=/tmp/gitconfig GIT_CONFIG_NOSYSTEM=1
git config --global user.name t; git config --global user.email t@t; git config --global safe.directory '*'
repository() {
    git init -q /tmp/origin; cd /tmp/origin
    for d in $(seq 40); do mkdir d$d; for f in $(seq 25); do echo $d $f >d$d/f$f; done; done
    git add .; git commit -qm one
}
transactions() { (echo 'pragma journal_mode=wal; create table t(n);'; for i in $(seq 300); do echo "insert into t values($i);"; done) | sqlite3 a.db; }
bench /share round-trip metadata data
(repository) >/dev/null 2>&1
cd /share
job git_clone 1000 git clone -q /tmp/origin clone
cd clone
job git_status 1 git status
job find 1000 find . -type f
job grep 1000 grep -r nothing .
cd ..
job sqlite_wal 300 transactions
job rm_rf 1000 rm -rf clone
"#;

/// What people do to a tree of FILES small files, in DIRECTORY, with the programs that they do it with; caches are first as the step before left
/// them, then empty.
const TREE_JOBS: &str = "
bench /tmp make-tree=FILES
tar -C /tmp -cf /tmp/tree.tar tree
rm -rf /tmp/tree
unpack() { tar xf /tmp/tree.tar; sync; }
delete() { rm -rf tree; sync; }
drop() { sync; echo 3 >/proc/sys/vm/drop_caches; }
found() { find tree -type f -size +1000000k; }
cd DIRECTORY
job 1_unpack FILES unpack
job 2_stat FILES found
job 3_read FILES grep -r nothing tree
drop
job 4_stat_cold FILES found
drop
job 5_read_cold FILES grep -r nothing tree
job 6_delete FILES delete
";

/// Seconds for one operation, by case.
type Times = BTreeMap<String, f64>;

fn main() -> Result<()> {
    let runs = number("MINIVMM_BENCH_RUNS", 5);
    let files = number("MINIVMM_BENCH_FILES", 30_000);
    let program = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let qemu = program("MINIVMM_BENCH_QEMU", "qemu-system-aarch64");
    let virtiofsd = program("MINIVMM_BENCH_VIRTIOFSD", "/usr/libexec/virtiofsd");
    let jobs = std::env::var("MINIVMM_BENCH_JOBS").map_or_else(|_| Ok(JOBS.to_owned()), fs::read_to_string)?;
    let bench = Bench::prepare()?;
    if runs > 0 {
        if !qemu.is_empty() {
            println!("{runs} runs each, alternating; peer: {}, {}\n", version(&qemu)?, version(&virtiofsd)?);
        }
        println!("| case | minivmm | QEMU TCG, virtiofsd | ratio |\n|---|---|---|---|");
        let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..runs {
            collect(&mut ours, bench.minivmm(&jobs, None)?);
            if !qemu.is_empty() {
                collect(&mut theirs, bench.qemu(&qemu, &virtiofsd, &jobs)?);
            }
        }
        let mut ratios = Vec::new();
        for (name, mut times) in ours {
            let ours = median(&mut times);
            let Some(theirs) = theirs.get_mut(&name).map(|times| median(times)) else {
                println!("| {name} | {:.1} µs | cannot | |", ours * 1e6);
                continue;
            };
            println!("| {name} | {:.1} µs | {:.1} µs | {:.2} |", ours * 1e6, theirs * 1e6, ours / theirs);
            ratios.push(ours / theirs);
        }
        #[expect(clippy::cast_precision_loss, reason = "a handful of cases")]
        let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len().max(1) as f64).exp();
        println!("| geometric mean of these | | | {mean:.2} |\n");
    }
    if files > 0 {
        println!("| tree of {files} files, for each | share | virtio-blk, ext4 | ratio |\n|---|---|---|---|");
        let (mut share, mut disk) = (BTreeMap::new(), BTreeMap::new());
        let tree = TREE_JOBS.replace("FILES", &files.to_string());
        for _ in 0..runs.clamp(1, 3) {
            // Each in a machine of its own.
            collect(&mut share, bench.minivmm(&tree.replace("DIRECTORY", "/share"), Some("4G"))?);
            collect(&mut disk, bench.minivmm(&tree.replace("DIRECTORY", "/local"), Some("4G"))?);
        }
        let mut all = (0.0, 0.0);
        for (name, mut times) in share {
            let (ours, theirs) = (median(&mut times), disk.get_mut(&name).map_or(f64::NAN, |times| median(times)));
            println!("| {name} | {:.1} µs | {:.1} µs | {:.2} |", ours * 1e6, theirs * 1e6, ours / theirs);
            all = (all.0 + ours, all.1 + theirs);
        }
        println!("| all six | {:.1} µs | {:.1} µs | {:.2} |", all.0 * 1e6, all.1 * 1e6, all.0 / all.1);
    }
    Ok(())
}

fn collect(into: &mut BTreeMap<String, Vec<f64>>, times: Times) {
    times.into_iter().for_each(|(name, time)| into.entry(name).or_default().push(time));
}

/// The files that both machines boot.
struct Bench {
    kernel: PathBuf,
    initrd: PathBuf,
    system: PathBuf,
    directory: tempfile::TempDir,
}

impl Bench {
    fn prepare() -> Result<Self> {
        let directory = match std::env::var_os("MINIVMM_BENCH_SHARE") {
            Some(place) => tempfile::tempdir_in(place)?,
            None => tempfile::tempdir()?,
        };
        let system = system::make()?;
        let bundle = shell_bundle(MINIVMM)?;
        let mut archive = Archive::new();
        archive.file("bench", 0o755, INIT.as_bytes().to_vec());
        let mut initramfs = fs::read(bundle.join("initramfs"))?;
        // A further archive begins at a multiple of four bytes.
        initramfs.resize(initramfs.len().next_multiple_of(4), 0);
        initramfs.extend(archive.to_bytes().ok_or("the archive is too large")?);
        let initrd = directory.path().join("initramfs");
        fs::write(&initrd, initramfs)?;
        Ok(Self { kernel: bundle.join("kernel"), initrd, system, directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A new directory to share, and the disk with `script`.
    fn begin(&self, script: &str) -> Result<(PathBuf, PathBuf)> {
        let share = self.path("share");
        if share.exists() {
            fs::remove_dir_all(&share)?;
        }
        fs::create_dir(&share)?;
        let mut bytes = format!("{JOB}{script}").into_bytes();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        let disk = self.path("script");
        fs::write(&disk, bytes)?;
        Ok((share, disk))
    }

    /// Runs `script` on minivmm; with `local`, there is an ext4 disk of that size.
    fn minivmm(&self, script: &str, local: Option<&str>) -> Result<Times> {
        let (share, disk) = self.begin(script)?;
        let console = self.path("console");
        let mut command = Command::new(MINIVMM);
        command.args(["boot", "--quiet", "--hypervisor", "soft", "--cpus", CPUS]);
        command.arg("--transport").arg(std::env::var("MINIVMM_BENCH_TRANSPORT").as_deref().unwrap_or("pci"));
        command
            .arg("--memory")
            .arg(format!("{MEMORY_MIB}M"))
            .arg("--kernel")
            .arg(&self.kernel)
            .arg("--initrd")
            .arg(&self.initrd);
        command.arg("--cmdline").arg("console=ttyAMA0 quiet panic=-1 rdinit=/bench");
        command.arg("--console").arg(format!("file={}", console.display()));
        command
            .arg("--disk")
            .arg(format!("{},ro", self.system.display()))
            .arg("--disk")
            .arg(format!("{},ro", disk.display()));
        if let Some(size) = local {
            let image = self.path("local");
            run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&image).arg(size))?;
            command.arg("--disk").arg(image);
        }
        let options = std::env::var("MINIVMM_BENCH_SHARE_OPTIONS").unwrap_or_default();
        command.arg("--share").arg(format!("{}:share{options}", share.display()));
        if let Some(path) = std::env::var_os("MINIVMM_BENCH_STATS") {
            command.arg("--stats").arg(path);
        }
        finish(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?, &console)
    }

    /// Runs `script` on QEMU.
    fn qemu(&self, qemu: &str, virtiofsd: &str, script: &str) -> Result<Times> {
        let (share, disk) = self.begin(script)?;
        let (console, socket) = (self.path("console"), self.path("socket"));
        let mut server = Command::new(virtiofsd);
        server.arg("--socket-path").arg(&socket).arg("--shared-dir").arg(&share).args(["--sandbox", "none", "--xattr"]);
        let mut server = server.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let start = Instant::now();
        while !socket.exists() {
            if start.elapsed() > Duration::from_secs(10) {
                return Err("virtiofsd does not come up".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut command = Command::new(qemu);
        command.args(["-M", "virt,gic-version=3", "-cpu", "cortex-a72", "-accel", "tcg,thread=multi", "-smp", CPUS]);
        command.args(["-m", &MEMORY_MIB.to_string(), "-nodefaults", "-display", "none", "-no-reboot"]);
        command.arg("-object").arg(format!("memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"));
        command.args(["-numa", "node,memdev=memory"]).arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        command.arg("-append").arg("console=ttyAMA0 quiet panic=-1 rdinit=/bench");
        command.arg("-serial").arg(format!("file:{}", console.display()));
        for (index, disk) in [&self.system, &disk].into_iter().enumerate() {
            command.arg("-drive").arg(format!("if=none,id=d{index},format=raw,readonly=on,file={}", disk.display()));
            command.arg("-device").arg(format!("virtio-blk-pci,drive=d{index}"));
        }
        command.arg("-chardev").arg(format!("socket,id=c,path={}", socket.display()));
        command.args(["-device", "vhost-user-fs-pci,chardev=c,tag=share,queue-size=1024"]);
        let times = finish(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?, &console);
        // It ends with its guest, unless something went wrong.
        let _ = server.kill();
        server.wait()?;
        let _ = fs::remove_file(socket);
        times
    }
}

fn run(command: &mut Command) -> Result<()> {
    if command.status()?.success() { Ok(()) } else { Err(format!("{command:?} failed").into()) }
}

/// What the guest says, once it has ended.
fn finish(mut child: Child, console: &Path) -> Result<Times> {
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > LONGEST_RUN {
            child.kill()?;
            child.wait()?;
            return Err("a guest did not power off in time".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let text = String::from_utf8_lossy(&fs::read(console)?).into_owned();
    if !text.contains("SCRIPT ENDS 0") {
        return Err(format!("the guest failed: {text}").into());
    }
    let mut times = Times::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["BENCH", name, seconds, operations] = words[..] {
            times.insert(name.to_owned(), seconds.parse::<f64>()? / operations.parse::<f64>()?);
        }
    }
    Ok(times)
}
