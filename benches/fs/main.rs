//! `cargo bench --bench fs`, on Linux: the file system device with the guest's side driven from here, so that no software CPU hides it, and
//! virtiofsd and fuse-backend-rs on the same requests.
//!
//! All three serve the same directory to the same polling driver, ours in this process and the others as vhost-user daemons; none
//! raises interrupts. The driver has one processor and the server another: a server that is woken where the driver spins would measure the
//! scheduler. "Per core" counts the time that the server's threads were on a CPU (`/proc/…/schedstat`); latency is from the notification
//! to the used element, one request at a time. `MINIVMM_BENCH_RUNS` sets the number of runs (5), whose medians are printed.
//! `MINIVMM_VIRTIOFSD` and `MINIVMM_FUSE_BACKEND_RS` name the daemons: the latter is
//! `cargo build --release --manifest-path benches/fs/rival/Cargo.toml`'s. One that is missing is left out.

mod guest;
#[path = "../measuring/mod.rs"]
#[expect(dead_code, reason = "other benches use more of it")]
mod measuring;
mod vhost_user;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use minivmm::host::fs::{Budget, Ownership, Share};
use minivmm_devices::bus::MmioDevice;
use minivmm_devices::testing::{Level, register};
use minivmm_devices::virtio::fs::abi::{
    CreateIn, Dirent, EntryOut, ForgetIn, GetattrIn, InitIn, OpenIn, OpenOut, ReadIn, ReleaseIn, WriteIn, opcode,
    open_flags,
};
use minivmm_devices::virtio::fs::server::{Server, ServerOptions};
use minivmm_devices::virtio::fs::{Fs, Tag};
use minivmm_devices::virtio::transport::mmio::MmioTransport;
use zerocopy::{FromBytes, IntoBytes};

use guest::{Guest, QUEUE_SIZE, Request, SLOTS, new_memory, rings};
use measuring::{Result, number};
use vhost_user::Daemon;

const FILES: usize = 100;
/// Requests of a case, one at a time, and of one with many in flight.
const ALONE: usize = 2000;
const TOGETHER: usize = 8000;
const ROOT: u64 = 1;
/// FORGETs in flight, which have places of their own. A divisor of 2^16.
const MOST_FORGETS: u16 = 8;

fn main() -> Result<()> {
    let runs = number("MINIVMM_BENCH_RUNS", 5);
    let directory = tempfile::tempdir()?;
    prepare(directory.path())?;
    let mut results: BTreeMap<(usize, &str), BTreeMap<&str, Vec<Figures>>> = BTreeMap::new();
    let mut lost = BTreeMap::new();
    for run in 0..runs {
        for kind in Kind::all() {
            // What is started now inherits it.
            run_on(1)?;
            let Some(mut bench) = Bench::start(kind, directory.path(), run == 0)? else { continue };
            run_on(0)?;
            for (index, (case, figures)) in bench.run()?.into_iter().enumerate() {
                results.entry((index, case)).or_default().entry(kind.name()).or_default().push(figures);
            }
            *lost.entry(kind.name()).or_insert(0) += bench.guest.lost;
        }
    }
    println!(
        "medians of {runs} runs; k/s: thousands of requests for each second of the server on a CPU; us: median latency\n"
    );
    println!(
        "| case | minivmm k/s | virtiofsd | fuse-backend-rs | minivmm us | virtiofsd | fuse-backend-rs | least ratio |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for ((_, case), by_kind) in results {
        let median = |name: &str, of: fn(&Figures) -> f64| {
            let mut values: Vec<f64> = by_kind.get(name)?.iter().map(of).collect();
            Some(measuring::median(&mut values))
        };
        let names = Kind::all().map(Kind::name);
        let rates = names.map(|name| median(name, |figures| figures.per_core / 1e3));
        let latencies = names.map(|name| median(name, |figures| figures.latency_us));
        let show = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
        let ratio = |ours: Option<f64>, theirs: Option<f64>| Some(ours? / theirs?);
        let ratios = rates[1..].iter().map(|theirs| ratio(rates[0], *theirs));
        let ratios = ratios.chain(latencies[1..].iter().map(|theirs| ratio(*theirs, latencies[0])));
        let least = ratios.flatten().min_by(f64::total_cmp);
        let cells: Vec<String> = rates.into_iter().chain(latencies).chain([least]).map(show).collect();
        println!("| {case} | {} |", cells.join(" | "));
    }
    lost.retain(|_, count| *count > 0);
    if !lost.is_empty() {
        println!("\nnotifications that were lost, and repeated: {lost:?}");
    }
    Ok(())
}

/// Keeps this thread, and what it starts, on one processor.
fn run_on(cpu: usize) -> Result<()> {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &cpus)?)
}

/// A directory with small files and a large one.
fn prepare(directory: &Path) -> Result<()> {
    std::fs::create_dir(directory.join("many"))?;
    for index in 0..FILES {
        std::fs::write(directory.join(format!("many/file-{index:03}")), vec![b'x'; 4096])?;
    }
    std::fs::write(directory.join("large"), vec![b'y'; 16 << 20])?;
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Ours,
    Virtiofsd,
    FuseBackend,
}

impl Kind {
    fn all() -> [Self; 3] {
        [Self::Ours, Self::Virtiofsd, Self::FuseBackend]
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "minivmm",
            Self::Virtiofsd => "virtiofsd",
            Self::FuseBackend => "fuse-backend-rs",
        }
    }
}

struct Figures {
    /// Requests for each second of the server's threads on a CPU.
    per_core: f64,
    latency_us: f64,
}

/// One server with a guest that has mounted it.
struct Bench {
    guest: Guest,
    daemon: Option<Daemon>,
}

impl Bench {
    /// `None`, and a line of why, where a daemon is missing.
    fn start(kind: Kind, directory: &Path, is_first: bool) -> Result<Option<Self>> {
        let (variable, default) = match kind {
            Kind::Ours => {
                let guest = ours(directory)?;
                return Ok(Some(Self { guest, daemon: None }.mount()?));
            }
            Kind::Virtiofsd => ("MINIVMM_VIRTIOFSD", "/usr/libexec/virtiofsd"),
            Kind::FuseBackend => {
                let default =
                    concat!(env!("CARGO_MANIFEST_DIR"), "/benches/fs/rival/target/release/fuse-backend-rs-daemon");
                ("MINIVMM_FUSE_BACKEND_RS", default)
            }
        };
        let program = std::env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from);
        if !program.exists() {
            if is_first {
                eprintln!("left out: no {} ({variable} names another)", program.display());
            }
            return Ok(None);
        }
        let socket = std::env::temp_dir().join(format!("minivmm-bench-{}.sock", std::process::id()));
        drop(std::fs::remove_file(&socket));
        let mut command = Command::new(program);
        if matches!(kind, Kind::Virtiofsd) {
            command.arg("--socket-path").arg(&socket).arg("--shared-dir").arg(directory);
            // What it does by default, without the sandbox, which costs it nothing here but privileges.
            command.args(["--cache", "auto", "--sandbox", "none"]);
        } else {
            command.arg(&socket).arg(directory);
        }
        let (daemon, guest) = Daemon::start(command, &socket)?;
        Ok(Some(Self { guest, daemon: Some(daemon) }.mount()?))
    }

    fn mount(mut self) -> Result<Self> {
        // What Linux 6.12 offers.
        let init = InitIn {
            major: 7.into(),
            minor: 41.into(),
            max_readahead: (128 << 10).into(),
            flags: 0x73ff_fffb.into(),
            flags2: 0x0000_01f1.into(),
            ..InitIn::default()
        };
        self.ask(opcode::INIT, 0, &[init.as_bytes()], 64)?;
        Ok(self)
    }

    fn ask(&mut self, number: u32, node: u64, arguments: &[&[u8]], room: u32) -> Result<Vec<u8>> {
        let request = Request { opcode: number, node, arguments: arguments.concat(), data: 0, room };
        match self.guest.call(&request) {
            (0, payload) => Ok(payload),
            (error, _) => Err(format!("opcode {number} of node {node}: error {error}").into()),
        }
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<u64> {
        let reply = self.ask(opcode::LOOKUP, parent, &[name.as_bytes(), &[0]], 128)?;
        Ok(EntryOut::read_from_prefix(&reply).map_err(|_| "short")?.0.nodeid.get())
    }

    fn open(&mut self, number: u32, node: u64, flags: u32) -> Result<u64> {
        let wire = OpenIn { flags: flags.into(), open_flags: 0.into() };
        let reply = self.ask(number, node, &[wire.as_bytes()], 16)?;
        Ok(OpenOut::read_from_prefix(&reply).map_err(|_| "short")?.0.fh.get())
    }

    /// Time that the server's threads were on a CPU.
    fn cpu(&self) -> Result<Duration> {
        let process = self.daemon.as_ref().map_or_else(std::process::id, Daemon::pid);
        let mut nanos = 0;
        for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
            let task = task?.path();
            // Of this process, the device's threads: not the guest, which the first thread is, named after the program.
            let is_first = task.ends_with(process.to_string());
            let is_device = !is_first && std::fs::read_to_string(task.join("comm"))?.starts_with("fs-");
            let is_server = self.daemon.is_some() || is_device;
            if is_server {
                let line = std::fs::read_to_string(task.join("schedstat"))?;
                nanos += line.split(' ').next().unwrap_or_default().parse::<u64>()?;
            }
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Measures requests of one kind, in turn: first one at a time, then many in flight.
    fn case(&mut self, requests: &[Request]) -> Result<Figures> {
        let mut requests = requests.iter().cycle();
        let mut next = || requests.next().ok_or("no request");
        let mut latencies = Vec::with_capacity(ALONE);
        for _ in 0..ALONE {
            let request = next()?;
            let start = Instant::now();
            self.guest.send(1, 0, request);
            self.guest.wait(1);
            latencies.push(start.elapsed().as_secs_f64() * 1e6);
        }
        let before = self.cpu()?;
        for slot in 0..SLOTS {
            self.guest.send(1, slot, next()?);
        }
        for _ in usize::from(SLOTS)..TOGETHER {
            let slot = self.guest.wait(1);
            self.guest.send(1, slot, next()?);
        }
        for _ in 0..SLOTS {
            self.guest.wait(1);
        }
        Ok(figures(self.cpu()? - before, TOGETHER, latencies))
    }

    fn run(&mut self) -> Result<Vec<(&'static str, Figures)>> {
        let many = self.lookup(ROOT, "many")?;
        let file = self.lookup(many, "file-007")?;
        let large = self.lookup(ROOT, "large")?;
        let fh = self.open(opcode::OPEN, large, open_flags::RDWR)?;
        let listing = self.open(opcode::OPENDIR, many, 0)?;
        let read_at = |fh: u64, offset: u64, size: u32| {
            let read = ReadIn { fh: fh.into(), offset: offset.into(), size: size.into(), ..ReadIn::default() };
            read.as_bytes().to_vec()
        };
        let read = |fh: u64, size: u32| read_at(fh, 0, size);
        let write = WriteIn { fh: fh.into(), size: 4096.into(), ..WriteIn::default() };
        let request = |opcode: u32, node: u64, arguments: Vec<u8>, data: u32, room: u32| Request {
            opcode,
            node,
            arguments,
            data,
            room,
        };
        let list = |offset: u64| request(opcode::READDIRPLUS, many, read_at(listing, offset, 4096), 0, 4096);
        let listings: Vec<Request> = self.listing(many, listing)?.into_iter().map(list).collect();
        let one = |name: &'static str, request: Request| (name, vec![request]);
        let cases = [
            one("GETATTR", request(opcode::GETATTR, file, GetattrIn::default().as_bytes().to_vec(), 0, 104)),
            one("LOOKUP, known", request(opcode::LOOKUP, many, b"file-007\0".to_vec(), 0, 128)),
            one("LOOKUP, missing", request(opcode::LOOKUP, many, b"no-such-name\0".to_vec(), 0, 128)),
            ("READDIRPLUS, 4 KiB", listings),
            one("READ 4 KiB", request(opcode::READ, large, read(fh, 4096), 0, 4096)),
            one("READ 128 KiB", request(opcode::READ, large, read(fh, 128 << 10), 0, 128 << 10)),
            one("WRITE 4 KiB", request(opcode::WRITE, large, write.as_bytes().to_vec(), 4096, 8)),
        ];
        let mut results = Vec::new();
        for (name, requests) in cases {
            results.push((name, self.case(&requests)?));
        }
        results.push(("trace: walk, read, make, remove", self.trace(many)?));
        Ok(results)
    }

    /// Where each READDIRPLUS of 4 KiB begins that lists `directory`.
    fn listing(&mut self, directory: u64, fh: u64) -> Result<Vec<u64>> {
        let (mut offsets, mut next) = (Vec::new(), 0);
        loop {
            let begin = next;
            let read = ReadIn { fh: fh.into(), offset: begin.into(), size: 4096.into(), ..ReadIn::default() };
            let reply = self.ask(opcode::READDIRPLUS, directory, &[read.as_bytes()], 4096)?;
            let mut rest = reply.as_slice();
            while let Ok((_, behind)) = EntryOut::read_from_prefix(rest) {
                let (entry, _) = Dirent::read_from_prefix(behind).map_err(|_| "short")?;
                next = entry.off.get();
                let len = size_of::<EntryOut>() + size_of::<Dirent>() + usize::try_from(entry.namelen.get())?;
                rest = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
            }
            if reply.is_empty() {
                return Ok(offsets);
            }
            offsets.push(begin);
        }
    }

    /// What a program does that reads a tree of small files and makes others: each request needs what the one before it returned.
    fn trace(&mut self, many: u64) -> Result<Figures> {
        let before = self.cpu()?;
        let (mut count, mut latencies) = (0, Vec::new());
        for round in 0..6 {
            let listing = self.timed(opcode::OPENDIR, many, &[&[0; 8]], 16, &mut latencies)?;
            let listing = OpenOut::read_from_prefix(&listing).map_err(|_| "short")?.0.fh;
            for index in 0..FILES {
                let name = format!("file-{index:03}\0");
                let entry = self.timed(opcode::LOOKUP, many, &[name.as_bytes()], 128, &mut latencies)?;
                let node = EntryOut::read_from_prefix(&entry).map_err(|_| "short")?.0.nodeid.get();
                self.timed(opcode::LOOKUP, many, &[format!("none-{round}-{index}\0").as_bytes()], 128, &mut latencies)
                    .ok();
                let fh = self.timed(opcode::OPEN, node, &[&[0; 8]], 16, &mut latencies)?;
                let fh = OpenOut::read_from_prefix(&fh).map_err(|_| "short")?.0.fh;
                let read = ReadIn { fh, size: 4096.into(), ..ReadIn::default() };
                self.timed(opcode::READ, node, &[read.as_bytes()], 4096, &mut latencies)?;
                self.timed(opcode::GETATTR, node, &[GetattrIn::default().as_bytes()], 104, &mut latencies)?;
                let release = ReleaseIn { fh, ..ReleaseIn::default() };
                self.timed(opcode::RELEASE, node, &[release.as_bytes()], 0, &mut latencies)?;
                self.forget(node);
                self.make_and_remove(many, &format!("new-{index}\0"), &mut latencies)?;
                count += 1;
            }
            let release = ReleaseIn { fh: listing, ..ReleaseIn::default() };
            self.timed(opcode::RELEASEDIR, many, &[release.as_bytes()], 0, &mut latencies)?;
        }
        self.wait_for_forgets(0);
        let forgets = 2 * count;
        Ok(figures(self.cpu()? - before, latencies.len() + forgets, latencies))
    }

    fn make_and_remove(&mut self, parent: u64, name: &str, latencies: &mut Vec<f64>) -> Result<()> {
        let create = CreateIn { flags: open_flags::RDWR.into(), mode: 0o644.into(), ..CreateIn::default() };
        let reply = self.timed(opcode::CREATE, parent, &[create.as_bytes(), name.as_bytes()], 144, latencies)?;
        let (entry, rest) = EntryOut::read_from_prefix(&reply).map_err(|_| "short")?;
        let fh = OpenOut::read_from_prefix(rest).map_err(|_| "short")?.0.fh;
        let node = entry.nodeid.get();
        let write = WriteIn { fh, size: 1024.into(), ..WriteIn::default() };
        self.timed(opcode::WRITE, node, &[write.as_bytes(), &[b'z'; 1024]], 8, latencies)?;
        let release = ReleaseIn { fh, ..ReleaseIn::default() };
        self.timed(opcode::RELEASE, node, &[release.as_bytes()], 0, latencies)?;
        self.timed(opcode::UNLINK, parent, &[name.as_bytes()], 0, latencies)?;
        self.forget(node);
        Ok(())
    }

    fn timed(
        &mut self,
        number: u32,
        node: u64,
        arguments: &[&[u8]],
        room: u32,
        latencies: &mut Vec<f64>,
    ) -> Result<Vec<u8>> {
        let start = Instant::now();
        let reply = self.ask(number, node, arguments, room);
        latencies.push(start.elapsed().as_secs_f64() * 1e6);
        reply
    }

    /// Sends a FORGET, for which no kernel waits.
    fn forget(&mut self, node: u64) {
        self.wait_for_forgets(MOST_FORGETS - 1);
        let arguments = ForgetIn { nlookup: 1.into() }.as_bytes().to_vec();
        let slot = SLOTS + self.guest.sent(0).0 % MOST_FORGETS;
        self.guest.send(0, slot, &Request { opcode: opcode::FORGET, node, arguments, data: 0, room: u32::MAX });
    }

    /// Waits until at most `most` of them are in flight.
    fn wait_for_forgets(&mut self, most: u16) {
        while self.guest.sent(0).1 > most {
            self.guest.wait(0);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn figures(cpu: Duration, count: usize, mut latencies: Vec<f64>) -> Figures {
    latencies.sort_by(f64::total_cmp);
    let latency_us = latencies.get(latencies.len() / 2).copied().unwrap_or(f64::NAN);
    Figures { per_core: count as f64 / cpu.as_secs_f64(), latency_us }
}

/// Our device with a driver that has started.
fn ours(directory: &Path) -> Result<Guest> {
    let share = Share::open(directory, Ownership::Auto, &Budget::of_process())?;
    let server = Server::new(Arc::new(share), None, ServerOptions::default());
    let device = Fs::new(Arc::new(server), Tag::new("bench")?, 1);
    let (memory, _) = new_memory()?;
    let (_, line) = Level::new_line();
    let mut transport = MmioTransport::new(Box::new(device), memory.clone(), line);
    let write = |transport: &mut MmioTransport, offset: u64, value: u32| {
        transport.write(offset, &value.to_le_bytes()).expect("a register");
    };
    write(&mut transport, register::STATUS, 3);
    for (select, word) in [(0, 1 << 29 | 1 << 28), (1, 1)] {
        write(&mut transport, register::DRIVER_FEATURES_SEL, select);
        write(&mut transport, register::DRIVER_FEATURES, word);
    }
    write(&mut transport, register::STATUS, 11);
    for queue in 0..2 {
        write(&mut transport, register::QUEUE_SEL, queue.into());
        write(&mut transport, register::QUEUE_SIZE, QUEUE_SIZE.into());
        let [desc, avail, used] = rings(queue);
        let areas =
            [(register::QUEUE_DESC_LOW, desc), (register::QUEUE_DRIVER_LOW, avail), (register::QUEUE_DEVICE_LOW, used)];
        for (low, address) in areas {
            write(&mut transport, low, u32::try_from(address)?);
            write(&mut transport, low + 4, 0);
        }
        write(&mut transport, register::QUEUE_READY, 1);
    }
    write(&mut transport, register::STATUS, 15);
    let kick = move |queue: u16| write(&mut transport, register::QUEUE_NOTIFY, queue.into());
    Ok(Guest::new(memory, Box::new(kick)))
}
