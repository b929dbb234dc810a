//! `minivmm docker` on the software CPU, driven by the real docker CLI with its buildx and compose plug-ins, and a real registry: Debian's, for
//! this host, whatever its own release has. Images are made of the guest's busybox, so nothing is downloaded but those programs.
//!
//! A machine starts in seconds, so most cases share one, in the order of [`CASES`]; a case is a function that cleans up. What ends machines
//! comes last. `MINIVMM_DOCKER_CASES=cp,build` runs only those; `MINIVMM_DOCKER_CYCLES=3` stops and kills the engine three times only.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::terminal::Terminal;
use tempfile::TempDir;

mod support;

/// A command that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(900);
/// Names that the image's busybox answers to.
const APPLETS: [&str; 32] = [
    "cat", "chmod", "chown", "chroot", "cut", "dd", "echo", "env", "false", "grep", "head", "httpd", "id", "ls",
    "md5sum", "mkdir", "nc", "nslookup", "ps", "rm", "seq", "sh", "sleep", "stat", "sync", "tail", "touch", "tr",
    "true", "tty", "wc", "wget",
];
const IMAGE: &str = "box";
type Case = fn(&Engine);
/// In one machine, in this order.
const CASES: [(&str, Case); 27] = [
    ("client", version_and_info_of_the_engine),
    ("context", context_leads_to_the_engine),
    ("save", image_is_saved_and_loaded),
    ("exit", exit_codes_are_the_commands),
    ("stdin", standard_input_arrives_whole_and_ends),
    ("tty", terminal_is_one),
    ("signals", signals_reach_the_command),
    ("exec", exec_runs_beside),
    ("logs", logs_follow_to_the_end),
    ("cp", files_are_copied_both_ways),
    ("build", image_is_built),
    ("compose", two_services_talk),
    ("networks", names_are_known_in_their_network_only),
    ("bind", shared_folder_is_the_same_both_ways),
    ("refused", other_folder_is_refused_with_the_reason),
    ("ports", published_port_serves_many_at_once_and_is_gone_afterwards),
    ("taken", port_that_is_taken_fails_the_run),
    ("udp", udp_port_is_published),
    ("host", host_is_reached_by_its_name),
    ("registry", image_is_pushed_and_pulled),
    ("limits", limits_and_init_and_health),
    ("space", space_that_is_free_again_is_the_hosts),
    ("shell", shell_runs_in_the_machine),
    ("terminal", shell_and_reset_talk_to_a_person),
    ("cycles", everything_survives_a_stop),
    ("kill", what_was_acknowledged_survives_a_kill),
    ("states", other_states_are_clear),
];
/// How often the engine is stopped, and killed, where nobody says.
const STOPS: u32 = 10;
const KILLS: u32 = 5;

/// An engine of this test's own: its state, its home, its docker CLI.
struct Engine {
    root: TempDir,
    tools: PathBuf,
    registry: u16,
}

impl Engine {
    /// Nothing runs yet. `None` where the tools cannot be had, which is said.
    fn new() -> Option<Self> {
        let tools = support::debian::unpacked(
            "docker-tools",
            &["docker-cli", "docker-buildx", "docker-compose", "docker-registry"],
        )?;
        // A path for Unix sockets must be short.
        let root = tempfile::Builder::new().prefix("mv").tempdir_in("/tmp").unwrap();
        let engine = Self { root, tools, registry: free_port() };
        fs::create_dir(engine.home()).unwrap();
        fs::create_dir(engine.path("docker-config")).unwrap();
        let plugins = engine.tools.join("usr/libexec/docker/cli-plugins");
        let config = serde_json::json!({ "cliPluginsExtraDirs": [plugins] });
        fs::write(engine.path("docker-config/config.json"), config.to_string()).unwrap();
        Some(engine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The folder that is shared.
    fn home(&self) -> PathBuf {
        self.path("home")
    }

    fn environment<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("HOME", self.home()).env("XDG_STATE_HOME", self.path("state"));
        command.env("DOCKER_CONFIG", self.path("docker-config")).env_remove("DOCKER_CONTEXT").env_remove("DOCKER_HOST");
        // The bundle is the user's: it takes a while to make.
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap()).join(".cache"));
        command.env("XDG_CACHE_HOME", cache)
    }

    /// `minivmm docker` with `arguments`.
    fn minivmm<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        command.arg("docker").args(arguments).stdin(Stdio::null()).env_remove("MINIVMM_LOG");
        self.environment(&mut command);
        command
    }

    fn socket(&self) -> PathBuf {
        self.path("state/minivmm/docker/docker.sock")
    }

    /// `docker` with `arguments`.
    fn docker<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(self.tools.join("usr/bin/docker"));
        command.args(arguments).stdin(Stdio::null());
        self.environment(&mut command);
        command.env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        command
    }

    /// What `docker` prints when all goes well.
    fn out(&self, arguments: &[&str]) -> String {
        ok(&mut self.docker(arguments))
    }

    /// What `docker run --rm` prints of `script` in the image.
    fn run(&self, options: &[&str], script: &str) -> String {
        self.out(&[&["run", "--rm"], options, &[IMAGE, "sh", "-c", script]].concat())
    }

    /// `minivmm docker start`.
    fn start_command(&self) -> Command {
        let registry = format!("host.docker.internal:{}", self.registry);
        let mut command = self.minivmm(&["start", "--hypervisor", "soft", "--cpus", "2", "--timeout", "600"]);
        command.args(["--insecure-registry", &registry]);
        command
    }

    fn start(&self) {
        ok(&mut self.start_command());
    }

    fn stop(&self) {
        ok(&mut self.minivmm(&["stop"]));
    }

    fn status(&self) -> serde_json::Value {
        let output = finish(&mut self.minivmm(&["status", "--json"]));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A machine that is of no use any more need not stop in order.
    fn end(&self) {
        if ["starting", "running", "stopping"].contains(&self.status()["state"].as_str().unwrap()) {
            self.kill();
        }
    }

    fn kill(&self) {
        let pid = i32::try_from(self.status()["pid"].as_i64().unwrap()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        wait_until("the engine is gone", || self.status()["state"] == "stopped");
    }

    /// Makes the image.
    fn import(&self) {
        let image = tempfile::tempdir_in(self.root.path()).unwrap();
        let image = image.path();
        fs::create_dir(image.join("bin")).unwrap();
        let busybox = finish(&mut self.minivmm(&["shell", "cat", "/usr/bin/busybox"]));
        assert!(busybox.status.success() && busybox.stdout.starts_with(b"\x7fELF"));
        fs::write(image.join("bin/busybox"), busybox.stdout).unwrap();
        fs::set_permissions(image.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
        for name in APPLETS {
            symlink("busybox", image.join("bin").join(name)).unwrap();
        }
        for name in ["etc", "root", "tmp", "www"] {
            fs::create_dir(image.join(name)).unwrap();
        }
        fs::write(image.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        fs::write(image.join("etc/group"), "root:x:0:\n").unwrap();
        let tar = Command::new("tar")
            .args(["-C", image.to_str().unwrap(), "--owner=0", "--group=0", "-c", "."])
            .output()
            .unwrap();
        let id = feed(&mut self.docker(&["import", "-", IMAGE]), &tar.stdout);
        assert!(id.starts_with("sha256:"), "{id}");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = finish(&mut self.minivmm(&["logs"]));
            eprintln!("--- the guest's last words ---\n{}", String::from_utf8_lossy(&logs.stdout));
        }
        self.end();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The output of `command`, which must end in time.
fn finish(command: &mut Command) -> Output {
    let what = format!("{command:?}");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).map(|_| bytes).unwrap()
        })
    };
    let (stdout, stderr) = (read(Box::new(stdout)), read(Box::new(stderr)));
    let status = end(&mut child, &what);
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn end(child: &mut Child, what: &str) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() >= deadline {
            child.kill().unwrap();
            panic!("hangs: {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Standard output of `command`, which succeeds.
fn ok(command: &mut Command) -> String {
    let output = finish(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Exit status and standard error of `command`.
fn fails(command: &mut Command) -> (i32, String) {
    let output = finish(command);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Standard output of `command`, which gets `input`.
fn feed(command: &mut Command, input: &[u8]) -> String {
    let what = format!("{command:?}");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        text
    });
    assert!(end(&mut child, &what).success(), "{what}");
    writer.join().unwrap();
    reader.join().unwrap()
}

fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn engine_runs_containers_and_loses_nothing() {
    let _alone = support::session::alone();
    let Some(engine) = Engine::new() else { return };
    let only = std::env::var("MINIVMM_DOCKER_CASES").ok();
    let is_wanted = |name: &str| only.as_ref().is_none_or(|only| only.split(',').any(|wanted| wanted == name));
    engine.start();
    engine.import();
    let mut failed = Vec::new();
    for (name, case) in CASES.iter().filter(|(name, _)| is_wanted(name)) {
        let start = Instant::now();
        // One that fails does not hide the others.
        let is_well = catch_unwind(AssertUnwindSafe(|| case(&engine))).is_ok();
        eprintln!("{name}: {:.1} s{}", start.elapsed().as_secs_f64(), if is_well { "" } else { ", failed" });
        if !is_well {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

fn version_and_info_of_the_engine(engine: &Engine) {
    let version = engine.out(&["version", "--format", "{{.Server.Os}}/{{.Server.Arch}}"]);
    assert_eq!(version.trim(), "linux/arm64");
    let info =
        engine.out(&["info", "--format", "{{.Name}} {{.Driver}} {{.CgroupVersion}} {{.NCPU}} {{.OperatingSystem}}"]);
    assert!(info.starts_with("minivmm overlay2 2 2 Debian GNU/Linux"), "{info}");
    let mode = fs::metadata(engine.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

fn context_leads_to_the_engine(engine: &Engine) {
    let mut docker = engine.docker(&["--context", "minivmm", "version", "--format", "{{.Server.Os}}"]);
    assert_eq!(ok(docker.env_remove("DOCKER_HOST")).trim(), "linux");
    let environment = ok(&mut engine.minivmm(&["env"]));
    assert_eq!(environment, format!("export DOCKER_HOST='unix://{}'\n", engine.socket().display()));
}

fn image_is_saved_and_loaded(engine: &Engine) {
    let file = engine.path("image.tar");
    engine.out(&["save", "-o", file.to_str().unwrap(), IMAGE]);
    engine.out(&["tag", IMAGE, "kept"]);
    engine.out(&["rmi", IMAGE]);
    let loaded = engine.out(&["load", "-i", file.to_str().unwrap()]);
    assert!(loaded.contains(&format!("Loaded image: {IMAGE}:latest")), "{loaded}");
    engine.out(&["rmi", "kept"]);
}

fn exit_codes_are_the_commands(engine: &Engine) {
    assert_eq!(
        fails(&mut engine.docker(&["run", "--rm", IMAGE, "sh", "-c", "echo oops >&2; exit 7"])),
        (7, "oops\n".to_owned())
    );
    let (status, errors) = fails(&mut engine.docker(&["run", "--rm", IMAGE, "no-such-program"]));
    assert!(status == 127 && errors.contains("no-such-program"), "{status} {errors}");
}

fn standard_input_arrives_whole_and_ends(engine: &Engine) {
    let input: Vec<u8> = (0..4 << 20).map(|index: u32| u8::try_from(index / 7 % 251).unwrap()).collect();
    let count = feed(&mut engine.docker(&["run", "-i", "--rm", IMAGE, "wc", "-c"]), &input);
    assert_eq!(count.trim(), input.len().to_string());
}

fn terminal_is_one(engine: &Engine) {
    assert_eq!(engine.out(&["run", "--rm", "-t", IMAGE, "tty"]), "/dev/pts/0\r\n");
    assert_eq!(engine.out(&["run", "--rm", IMAGE, "sh", "-c", "tty || true"]), "not a tty\n");
}

fn signals_reach_the_command(engine: &Engine) {
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 1 & wait $!; done";
    engine.out(&["run", "-d", "--name", "trap", IMAGE, "sh", "-c", script]);
    wait_until("the trap is set", || engine.out(&["logs", "trap"]) == "ready\n");
    engine.out(&["stop", "-t", "60", "trap"]);
    assert_eq!(engine.out(&["inspect", "-f", "{{.State.ExitCode}}", "trap"]).trim(), "5");
    assert_eq!(engine.out(&["logs", "trap"]), "ready\ncaught\n");
    engine.out(&["rm", "trap"]);
}

fn exec_runs_beside(engine: &Engine) {
    engine.out(&["run", "-d", "--name", "beside", IMAGE, "sleep", "1000"]);
    // Its input ends long before its output.
    let script = "cat; sleep 1; echo end";
    assert_eq!(feed(&mut engine.docker(&["exec", "-i", "beside", "sh", "-c", script]), b"input\n"), "input\nend\n");
    assert_eq!(fails(&mut engine.docker(&["exec", "beside", "sh", "-c", "exit 9"])).0, 9);
    engine.out(&["rm", "-f", "beside"]);
}

fn logs_follow_to_the_end(engine: &Engine) {
    engine.out(&["run", "-d", "--name", "talks", IMAGE, "sh", "-c", "for i in 1 2 3; do echo line $i; sleep 1; done"]);
    assert_eq!(engine.out(&["logs", "-f", "talks"]), "line 1\nline 2\nline 3\n");
    engine.out(&["rm", "talks"]);
}

fn files_are_copied_both_ways(engine: &Engine) {
    let (there, back) = (engine.path("there"), engine.path("back"));
    fs::write(&there, "content").unwrap();
    engine.out(&["create", "--name", "copy", IMAGE, "true"]);
    engine.out(&["cp", there.to_str().unwrap(), "copy:/root/file"]);
    engine.out(&["cp", "copy:/root/file", back.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(back).unwrap(), "content");
    engine.out(&["rm", "copy"]);
}

fn image_is_built(engine: &Engine) {
    let context = engine.home().join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("page"), "built\n").unwrap();
    let dockerfile = format!(
        "FROM {IMAGE}\nCOPY page /www/index.html\nRUN wc -c </www/index.html >/www/size\nCMD [\"cat\", \"/www/index.html\", \"/www/size\"]\n"
    );
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    engine.out(&["buildx", "build", "--load", "-t", "built", context.to_str().unwrap()]);
    assert_eq!(engine.out(&["run", "--rm", "built"]), "built\n6\n");
    engine.out(&["rmi", "built"]);
}

fn two_services_talk(engine: &Engine) {
    let project = engine.home().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("page"), "from the other service\n").unwrap();
    let file = format!(
        "services:\n  web:\n    image: {IMAGE}\n    command: httpd -f -p 80 -h /www\n    volumes: [\"./page:/www/index.html:ro\"]\n\
         \x20 client:\n    image: {IMAGE}\n    depends_on: [web]\n    command: sh -c 'until wget -q -O - http://web/; do sleep 1; done'\n"
    );
    fs::write(project.join("compose.yaml"), file).unwrap();
    let compose = |arguments: &[&str]| {
        let file = project.join("compose.yaml");
        ok(&mut engine.docker(&[&["compose", "-f", file.to_str().unwrap()], arguments].concat()))
    };
    compose(&["up", "-d"]);
    assert_eq!(engine.out(&["wait", "project-client-1"]).trim(), "0");
    assert!(compose(&["logs", "--no-log-prefix", "client"]).contains("from the other service"));
    compose(&["down", "-t", "1"]);
}

fn names_are_known_in_their_network_only(engine: &Engine) {
    engine.out(&["network", "create", "inner"]);
    engine.out(&[
        "run",
        "-d",
        "--network",
        "inner",
        "--name",
        "server",
        IMAGE,
        "httpd",
        "-f",
        "-p",
        "80",
        "-h",
        "/etc",
    ]);
    let script = "wget -q -O - http://server/passwd";
    assert!(engine.run(&["--network", "inner"], script).starts_with("root:"));
    let (status, _) = fails(&mut engine.docker(&["run", "--rm", IMAGE, "sh", "-c", script]));
    assert_ne!(status, 0);
    engine.out(&["rm", "-f", "server"]);
    engine.out(&["network", "rm", "inner"]);
}

fn shared_folder_is_the_same_both_ways(engine: &Engine) {
    let folder = engine.home().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("ours"), "from the host\n").unwrap();
    let bind = format!("{}:/shared", folder.display());
    let script = "cat /shared/ours; echo from the container >/shared/theirs; chmod 640 /shared/theirs; stat -c %u:%g /shared/theirs";
    assert_eq!(engine.run(&["-v", &bind], script), "from the host\n0:0\n");
    assert_eq!(fs::read_to_string(folder.join("theirs")).unwrap(), "from the container\n");
    let metadata = fs::metadata(folder.join("theirs")).unwrap();
    let uid = rustix::process::getuid().as_raw();
    assert_eq!((metadata.mode() & 0o777, metadata.uid()), (0o640, uid));
    // Whose a file is: to the host where the machine's user may say so, else to the machine.
    let owner = |path: &str| engine.run(&["-v", &bind], &format!("stat -c %u:%g {path}"));
    engine.run(&["-v", &bind], "chown 1234:5678 /shared/theirs");
    assert_eq!(owner("/shared/theirs"), "1234:5678\n");
    if uid == 0 {
        let metadata = fs::metadata(folder.join("theirs")).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
        std::os::unix::fs::chown(folder.join("ours"), Some(4321), Some(8765)).unwrap();
        assert_eq!(owner("/shared/ours"), "4321:8765\n");
    } else {
        assert_eq!(fs::metadata(folder.join("theirs")).unwrap().uid(), uid);
    }
    // What is not there is made, on the host, as dockerd does everywhere.
    engine.run(&["-v", &format!("{}/new:/new", folder.display())], "touch /new/file");
    assert!(folder.join("new/file").exists());
}

fn other_folder_is_refused_with_the_reason(engine: &Engine) {
    let (status, errors) = fails(&mut engine.docker(&["run", "--rm", "-v", "/opt/data:/data", IMAGE, "true"]));
    assert!(status != 0 && errors.contains("/opt/data is not shared with the machine"), "{errors}");
    // Past the relay that says so, there is nowhere to make it.
    let script = "mkdir /opt/data";
    assert_ne!(finish(&mut engine.minivmm(&["shell", "sh", "-c", script])).status.code(), Some(0));
}

/// What comes back for `text`, and the end of the connection.
fn echo(port: u16, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn published_port_serves_many_at_once_and_is_gone_afterwards(engine: &Engine) {
    let port = free_port();
    let publish = format!("127.0.0.1:{port}:80");
    // busybox's httpd lets nine clients wait, and a kernel with a full backlog resets those who wait for a minute: the machine's socat lets more.
    let server = ["chroot", "/host", "socat", "-t", "60", "TCP4-LISTEN:80,fork,backlog=1024", "EXEC:cat"];
    engine.out(&[&["run", "-d", "--name", "web", "-v", "/:/host", "-p", &publish, IMAGE], &server[..]].concat());
    // The port is open when `docker run` returns; the server may need a moment.
    wait_until("the server serves", || echo(port, "ready").is_ok_and(|answer| answer == "ready"));
    let request = move |number: usize| std::thread::spawn(move || (number, echo(port, &format!("request {number}"))));
    for request in (0..200).map(request).collect::<Vec<_>>() {
        let (number, answer) = request.join().unwrap();
        assert_eq!(answer.unwrap(), format!("request {number}"));
    }
    let published = engine.status()["published"].to_string();
    assert!(published.contains(&format!("127.0.0.1:{port}/tcp")), "{published}");
    engine.out(&["rm", "-f", "web"]);
    // The end of the guest's connection is on its way.
    wait_until("the port is closed", || TcpStream::connect(("127.0.0.1", port)).is_err());
    wait_until("nothing is published", || engine.status()["published"] == serde_json::json!([]));
}

fn port_that_is_taken_fails_the_run(engine: &Engine) {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (status, errors) = fails(&mut engine.docker(&["run", "--rm", "-p", &format!("{address}:80"), IMAGE, "true"]));
    assert!(status != 0 && errors.contains(&format!("cannot publish {address}/tcp: the port is in use")), "{errors}");
    assert!(engine.status()["refused"].to_string().contains(&address.to_string()));
}

fn udp_port_is_published(engine: &Engine) {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let publish = format!("127.0.0.1:{port}:5353/udp");
    // The image's busybox speaks no UDP; the machine's socat does, and the machine's own root may be bound.
    let server = ["chroot", "/host", "socat", "UDP4-RECVFROM:5353,fork", "EXEC:cat"];
    engine.out(&[&["run", "-d", "--name", "datagrams", "-v", "/:/host", "-p", &publish, IMAGE], &server[..]].concat());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut answer = [0; 16];
    wait_until("the datagram comes back", || {
        socket.send_to(b"ping\n", ("127.0.0.1", port)).unwrap();
        socket.recv(&mut answer).is_ok_and(|count| &answer[..count] == b"ping\n")
    });
    engine.out(&["rm", "-f", "datagrams"]);
}

fn host_is_reached_by_its_name(engine: &Engine) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            stream.unwrap().write_all(b"hello from the host\n").unwrap();
        }
    });
    let script = format!("nc host.docker.internal {port}");
    assert_eq!(engine.run(&[], &script), "hello from the host\n");
    assert_eq!(engine.run(&["--add-host", "host.docker.internal:host-gateway"], &script), "hello from the host\n");
    server.join().unwrap();
}

/// A registry of this host, until it is dropped.
struct Registry(Child);

impl Registry {
    fn start(engine: &Engine) -> Self {
        let (config, port) = (engine.path("registry.yml"), engine.registry);
        let storage = engine.path("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            storage.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(engine.tools.join("usr/bin/docker-registry"));
        let child = command.arg("serve").arg(config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("the registry listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self(child)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn image_is_pushed_and_pulled(engine: &Engine) {
    let _registry = Registry::start(engine);
    let name = format!("host.docker.internal:{}/box", engine.registry);
    engine.out(&["tag", IMAGE, &name]);
    engine.out(&["push", "-q", &name]);
    let id = engine.out(&["image", "inspect", "-f", "{{.Id}}", IMAGE]);
    // Nothing of it stays, so all of it comes from there.
    engine.out(&["rmi", &name, IMAGE]);
    engine.out(&["pull", "-q", &name]);
    assert_eq!(engine.out(&["image", "inspect", "-f", "{{.Id}}", &name]), id);
    engine.out(&["tag", &name, IMAGE]);
    engine.out(&["rmi", &name]);
    assert_eq!(engine.run(&[], "echo pulled"), "pulled\n");
}

fn limits_and_init_and_health(engine: &Engine) {
    let options = ["-d", "--name", "limited", "--init", "--memory", "64m", "--cpus", "0.5"];
    let health = ["--health-cmd", "test -e /tmp/well", "--health-interval", "1s"];
    engine.out(&[&["run"], &options[..], &health, &[IMAGE, "sh", "-c", "touch /tmp/well; sleep 1000"]].concat());
    let inside = engine.out(&[
        "exec",
        "limited",
        "sh",
        "-c",
        "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max; ps -o pid,comm",
    ]);
    assert!(inside.starts_with("67108864\n50000 100000\n"), "{inside}");
    assert!(inside.lines().any(|line| line.trim() == "1 docker-init"), "{inside}");
    wait_until("the container is well", || {
        engine.out(&["inspect", "-f", "{{.State.Health.Status}}", "limited"]).trim() == "healthy"
    });
    engine.out(&["rm", "-f", "limited"]);
    // More memory than it may have.
    let (status, _) = fails(&mut engine.docker(&[
        "run",
        "--rm",
        "--memory",
        "16m",
        IMAGE,
        "sh",
        "-c",
        "dd if=/dev/zero bs=64M count=1 of=/dev/null",
    ]));
    assert_ne!(status, 0);
}

fn space_that_is_free_again_is_the_hosts(engine: &Engine) {
    const MIB: u64 = 1 << 20;
    let disk = engine.path(DATA_DISK);
    let used = || fs::metadata(&disk).unwrap().blocks() * 512;
    let before = used();
    engine.run(&["-v", "large:/v"], "dd if=/dev/urandom of=/v/file bs=1M count=64 2>/dev/null; sync");
    assert!(used() > before + 48 * MIB);
    engine.out(&["volume", "rm", "large"]);
    // The file system gives it back when it commits.
    wait_until("the space is the host's", || used() < before + 16 * MIB);
    assert!(fs::metadata(&disk).unwrap().len() > 50 << 30);
}

fn shell_runs_in_the_machine(engine: &Engine) {
    let output = finish(&mut engine.minivmm(&["shell", "sh", "-c", "echo \"a  'b'\"; hostname; exit 3"]));
    assert_eq!(
        (output.status.code(), String::from_utf8(output.stdout).unwrap().as_str()),
        (Some(3), "a  'b'\nminivmm\n")
    );
    assert_eq!(feed(&mut engine.minivmm(&["shell"]), b"echo one; echo two >&2\n"), "one\ntwo\n");
    // The clock is the host's; it is set again when that has moved otherwise than time does, here by somebody in the machine.
    ok(&mut engine.minivmm(&["shell", "date", "-s", "2001-01-01"]));
    let now = std::time::SystemTime::now();
    minivmm::docker::requests::set_clock(&engine.path("state/minivmm/docker/request.sock"), now).unwrap();
    let seconds: u64 = ok(&mut engine.minivmm(&["shell", "date", "+%s"])).trim().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(seconds) < 60, "{now} {seconds}");
    assert!(ok(&mut engine.minivmm(&["logs"])).contains("minivmm: docker "));
    // Without a place to wait in, whoever watches the power key would keep a processor busy.
    ok(&mut engine.minivmm(&["shell", "test", "-p", "/run/power-key.tick"]));
}

fn shell_and_reset_talk_to_a_person(engine: &Engine) {
    let environment = |command: &mut Command| _ = engine.environment(command).env("TERM", "vt220");
    let mut terminal = Terminal::start((132, 40), &["docker", "shell"], environment);
    terminal.expect("# ");
    assert!(terminal.is_raw());
    terminal.type_in("stty size; echo $TERM; tty\r");
    terminal.expect("40 132");
    terminal.expect("vt220");
    terminal.expect("/dev/pts/");
    // ^C is the machine's.
    terminal.type_in("echo sleep''ing; sleep 1000\r");
    terminal.expect("sleeping");
    terminal.type_in("\x03echo inter''rupted\r");
    terminal.expect("interrupted");
    terminal.type_in("exit\r");
    assert_eq!(terminal.wait(), Some(0));
    assert!(!terminal.is_raw(), "the terminal is restored");

    // Where the engine runs, that is said before anything is asked.
    let mut terminal = Terminal::start((80, 24), &["docker", "reset"], environment);
    terminal.expect("the engine runs; `minivmm docker stop` stops it");
    assert_eq!(terminal.wait(), Some(1));
}

fn cycles(usual: u32) -> u32 {
    std::env::var("MINIVMM_DOCKER_CYCLES").map_or(usual, |count| count.parse().unwrap())
}

/// What two commands that run at the same time put out.
fn both(commands: [Command; 2]) -> [Output; 2] {
    commands.map(|mut command| std::thread::spawn(move || finish(&mut command))).map(|command| command.join().unwrap())
}

fn everything_survives_a_stop(engine: &Engine) {
    engine.out(&["volume", "create", "kept"]);
    let script = "echo up >>/v/log; exec sleep 1000";
    let always = ["run", "-d", "--init", "--name", "always", "--restart", "always", "-v", "kept:/v"];
    engine.out(&[&always[..], &[IMAGE, "sh", "-c", script]].concat());
    for cycle in 1..=cycles(STOPS) {
        if cycle == 4 {
            start_while_it_stops(engine);
        } else {
            engine.stop();
            assert_eq!(engine.status()["state"], "stopped");
            assert!(!engine.socket().exists());
            match cycle {
                1 => start_twice_at_once(engine),
                2 => start_with_an_old_bundle(engine),
                3 => start_with_other_options(engine),
                _ => engine.start(),
            }
        }
        let expected = "up\n".repeat(usize::try_from(cycle).unwrap() + 1);
        let log = || engine.out(&["exec", "always", "cat", "/v/log"]);
        wait_until("the container is started again", || log() == expected);
    }
    engine.out(&["rm", "-f", "always"]);
    engine.out(&["volume", "rm", "kept"]);
}

fn start_twice_at_once(engine: &Engine) {
    let outputs = both([engine.start_command(), engine.start_command()]);
    assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    let joined = outputs.iter().filter(|output| errors(output).contains("the engine runs already")).count();
    assert_eq!(joined, 1, "{outputs:?}");
}

fn start_while_it_stops(engine: &Engine) {
    let before = engine.status()["pid"].clone();
    let stop = engine.minivmm(&["stop"]);
    let stop = std::thread::spawn(move || ok(&mut { stop }));
    wait_until("the machine stops", || engine.status()["state"] == "stopping");
    engine.start();
    stop.join().unwrap();
    let status = engine.status();
    assert_eq!(status["state"], "running");
    assert_ne!(status["pid"], before);
}

/// A machine of another size, with another folder, and a disk that grows.
fn start_with_other_options(engine: &Engine) {
    let share = engine.path("share");
    fs::create_dir(&share).unwrap();
    fs::write(share.join("file"), "shared").unwrap();
    let mut start = engine.start_command();
    start.args(["--memory", "1536M", "--disk-size", "64G", "--no-home", "--share", share.to_str().unwrap()]);
    ok(&mut start);
    let memory: u64 = engine.out(&["info", "--format", "{{.MemTotal}}"]).trim().parse().unwrap();
    assert!((1300 << 20..1536 << 20).contains(&memory), "{memory}");
    let table = ok(&mut engine.minivmm(&["shell", "df", "-k", "/data"]));
    let kib: u64 = table.lines().last().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib > 61 << 20, "{table}");
    let bind = |folder: &Path| format!("{}:/shared", folder.display());
    assert_eq!(engine.run(&["-v", &bind(&share)], "cat /shared/file"), "shared");
    let (_, errors) = fails(&mut engine.docker(&["run", "--rm", "-v", &bind(&engine.home()), IMAGE, "true"]));
    assert!(errors.contains("is not shared with the machine"), "{errors}");
}

/// A bundle that another version made, where none can be made, still does; one that lacks a file does not.
fn start_with_an_old_bundle(engine: &Engine) {
    let bundle = ok(Command::new(env!("CARGO_BIN_EXE_minivmm")).args(["bundle", "path", "docker"]));
    let bundle = Path::new(bundle.trim());
    let old = engine.path("cache/minivmm/bundles/docker");
    fs::create_dir_all(&old).unwrap();
    for name in ["kernel", "initramfs", "root.squashfs"] {
        symlink(bundle.join(name), old.join(name)).unwrap();
    }
    let manifest = fs::read_to_string(bundle.join("bundle.toml")).unwrap();
    let recipe = manifest.lines().find(|line| line.starts_with("recipe = ")).unwrap();
    fs::write(old.join("bundle.toml"), manifest.replace(recipe, "recipe = \"older\"")).unwrap();
    let start = || {
        let mut command = engine.start_command();
        command.env("XDG_CACHE_HOME", engine.path("cache")).args(["--mirror", "http://127.0.0.1:1"]);
        finish(&mut command)
    };
    fs::rename(old.join("initramfs"), old.join("gone")).unwrap();
    let output = start();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("bundle docker is corrupted: initramfs is missing or has changed"), "{output:?}");
    fs::rename(old.join("gone"), old.join("initramfs")).unwrap();
    let output = start();
    assert!(output.status.success(), "{output:?}");
    assert!(errors(&output).contains("made by another version of minivmm and cannot be made anew"), "{output:?}");
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn what_was_acknowledged_survives_a_kill(engine: &Engine) {
    engine.out(&["volume", "create", "numbers"]);
    for kill in 1..=cycles(KILLS) {
        let script = "rm -f /v/log; i=0; while :; do echo $i >>/v/log; sync; echo $i; i=$((i + 1)); done";
        let mut writer = engine.docker(&["run", "--rm", "-v", "numbers:/v", IMAGE, "sh", "-c", script]);
        let mut writer = writer.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let mut last = lines.by_ref().take(5).last().unwrap().unwrap();
        engine.kill();
        // What was on its way to us was acknowledged as well.
        if let Some(Ok(line)) = lines.last() {
            last = line;
        }
        // Its status is that of a connection that broke.
        let _ = end(&mut writer, "docker run");
        // What the process leaves behind: a socket that nobody listens on, and a word that is not true any more.
        assert!(engine.socket().exists());
        let status = engine.status();
        assert_eq!(status["problem"], "the process was killed or crashed; what containers had written is safe");
        if kill == 1 {
            overwrite(&engine.path(DATA_DISK), SUPERBLOCK_CHECKSUM, &[0xa5; 4]);
        }
        engine.start();
        if kill == 1 {
            assert!(ok(&mut engine.minivmm(&["logs"])).contains("minivmm: repairing "));
        }
        let log = engine.run(&["-v", "numbers:/v"], "cat /v/log");
        let is_kept = log.lines().any(|line| line == last);
        assert!(is_kept, "{last} was acknowledged, the log ends with {:?}", log.lines().last());
    }
    engine.out(&["volume", "rm", "numbers"]);
}

const DATA_DISK: &str = "state/minivmm/docker/data.img";
/// Where on the disk: Linux, Documentation/filesystems/ext4/super.rst.
const SUPERBLOCK_CHECKSUM: u64 = 1024 + 0x3fc;
const GROUP_DESCRIPTORS: u64 = 4096;

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn other_states_are_clear(engine: &Engine) {
    let (status, errors) = fails(&mut engine.minivmm(&["reset", "--yes"]));
    assert!(status == 1 && errors.contains("the engine runs; `minivmm docker stop` stops it"), "{errors}");
    engine.stop();
    engine.stop();
    let (status, errors) = fails(&mut engine.minivmm(&["shell", "true"]));
    assert!(status == 1 && errors.contains("the engine does not run"), "{errors}");

    full_host_is_waited_for(engine);

    let (disk, kept) = (engine.path(DATA_DISK), engine.path("kept.img"));
    fs::rename(&disk, &kept).unwrap();
    let refused = |reason: &str| {
        let (status, errors) = fails(&mut engine.start_command());
        assert!(status == 1 && errors.contains(reason), "{errors}");
        assert_eq!(engine.status()["state"], "failed");
    };
    // A disk with something else on it stays as it is.
    fs::write(&disk, "precious".repeat(1 << 20)).unwrap();
    let content = fs::read(&disk).unwrap();
    refused("the data disk holds something else than minivmm's file system; nothing on it was changed");
    assert!(fs::read(&disk).unwrap() == content);
    // One that wants a person is not begun anew.
    ok(Command::new("cp").arg("--sparse=always").args([&kept, &disk]));
    overwrite(&disk, GROUP_DESCRIPTORS, &[0xa5; 4096]);
    refused("the data disk is damaged beyond what e2fsck repairs by itself; it was not formatted");

    let (status, errors) = fails(&mut engine.minivmm(&["reset"]));
    assert!(status == 1 && errors.contains("give --yes"), "{errors}");
    let mut terminal = Terminal::start((200, 24), &["docker", "reset"], |command| _ = engine.environment(command));
    terminal.expect("This deletes all images, containers and volumes");
    terminal.type_in("no\r");
    terminal.expect("nothing was deleted: the answer was not `yes`");
    assert_eq!(terminal.wait(), Some(1));
    assert!(disk.exists());
    ok(&mut engine.minivmm(&["reset", "--yes"]));
    assert!(!disk.exists() && kept.exists());
}

/// A small file system over the engine's state, which comes back in the end.
struct SmallHost<'e>(&'e Engine);

impl<'e> SmallHost<'e> {
    /// `None` where this user may not mount, which is said.
    fn of(engine: &'e Engine) -> Option<Self> {
        let mounted =
            finish(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1G", "tmpfs"]).arg(engine.path("state")));
        if mounted.status.success() {
            return Some(Self(engine));
        }
        eprintln!("skipped: a host that is full: {}", errors(&mounted).trim());
        None
    }

    fn filler(&self) -> PathBuf {
        self.0.path("state/filler")
    }

    /// Leaves so much room.
    fn fill(&self, left_bytes: u64) {
        let file = fs::File::create(self.filler()).unwrap();
        let space = rustix::fs::fstatvfs(&file).unwrap();
        let len = space.f_bavail * space.f_frsize - left_bytes;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len).unwrap();
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallHost<'_> {
    fn drop(&mut self) {
        self.0.end();
        ok(Command::new("umount").arg(self.0.path("state")));
    }
}

fn full_host_is_waited_for(engine: &Engine) {
    const MIB: u64 = 1 << 20;
    let Some(host) = SmallHost::of(engine) else { return };
    host.fill(100 * MIB);
    let (status, errors) = fails(&mut engine.start_command());
    assert!(status == 1 && errors.contains("there is no room for the data disk: 99 MiB left"), "{errors}");
    host.make_room();
    engine.start();
    engine.import();

    host.fill(20 * MIB);
    let script = "dd if=/dev/zero bs=1M count=64 | tr '\\0' x >/v/file; sync; md5sum </v/file";
    let mut writer = engine.docker(&["run", "--rm", "-v", "large:/v", IMAGE, "sh", "-c", script]);
    let writer = std::thread::spawn(move || ok(&mut writer));
    let own_log = engine.path("state/minivmm/docker/minivmm.log");
    let waits = || fs::read_to_string(&own_log).unwrap().contains("no room for what the guest writes");
    wait_until("a write waits", waits);
    let warning = || engine.status()["warning"].to_string();
    wait_until("the state says why", || warning().contains("the host's disk is nearly full"));
    assert!(!writer.is_finished());
    host.make_room();
    // Of 64 MiB of `x`.
    assert_eq!(writer.join().unwrap(), "de506679685541efcb501eac224adc64  -\n");
    wait_until("the state is well again", || warning() == "null");
    engine.stop();
}

/// Without a machine.
#[test]
fn wrong_usage_is_told_before_anything_is_made() {
    let root = tempfile::tempdir_in("/tmp").unwrap();
    let run = |arguments: &[&str]| {
        let mut command = support::minivmm(&[&["docker"], arguments].concat());
        command
            .env("XDG_STATE_HOME", root.path().join("s"))
            .env("HOME", root.path())
            .env("XDG_CACHE_HOME", root.path().join("c"));
        fails(&mut command)
    };
    assert_eq!(run(&["start", "--memory", "much"]).0, 2);
    assert_eq!(run(&["start", "--hypervisor", "xen"]).0, 2);
    assert_eq!(run(&["start", "--disk-size", "x"]).0, 2);
    assert_eq!(run(&["status"]).0, 1);
    let (status, errors) = run(&["stop"]);
    assert!(status == 0 && errors.contains("the engine does not run"), "{errors}");
    let long = format!("/tmp/{}", "x".repeat(100));
    let mut command = support::minivmm(&["docker", "status"]);
    let (status, errors) = fails(command.env("XDG_STATE_HOME", long));
    assert!(status == 1 && errors.contains("too long for a Unix socket"), "{errors}");
}
