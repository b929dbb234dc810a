//! `minivmm bundle`: the guests that minivmm makes itself, and what `boot` takes of them.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use indicatif::{ProgressBar, ProgressStyle};
use minivmm_firmware::bundle::download::Progress;
use minivmm_firmware::bundle::mirror::{Environment, Mirrors};
use minivmm_firmware::bundle::shell::Flavour;
use minivmm_firmware::bundle::signature::{Keyring, SignatureError};
use minivmm_firmware::bundle::{Bundle, BundleError, BundleSpec, BundleStore, FetchOptions};

use crate::machine::spec::BootFiles;

/// The bundle that `boot` uses where nothing is said.
const DEFAULT_BUNDLE: &str = "shell";

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a bundle from Debian packages, replacing one that is there
    #[command(alias = "build")]
    Fetch {
        #[command(flatten)]
        which: Which,
        /// Debian mirror [default: the host's own]
        #[arg(long, value_name = "URL", env = "MINIVMM_DEBIAN_MIRROR")]
        mirror: Option<String>,
    },
    /// List the bundles that are there
    List,
    /// Compare a bundle's files with their checksums
    Verify(Which),
    /// Print the directory of a bundle
    Path(Which),
}

#[derive(Debug, clap::Args)]
pub struct Which {
    /// Name of the bundle, such as shell, shell-forky, shell-16k or docker
    #[arg(default_value = DEFAULT_BUNDLE)]
    name: String,
    /// Debian release [default: trixie]
    #[arg(long)]
    release: Option<String>,
    /// Debian kernel: cloud, full or 16k [default: cloud]
    #[arg(long)]
    flavour: Option<Flavour>,
    /// Architecture of the guest
    #[arg(long, value_parser = ["arm64"], default_value = "arm64")]
    arch: String,
}

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleCommandError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Keyring(#[from] SignatureError),
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
}

impl Which {
    fn spec(&self) -> Result<BundleSpec, BundleError> {
        let mut spec = BundleSpec::from_id(&self.name)?;
        if let Some(release) = &self.release {
            spec = spec.with_release(release)?;
        }
        Ok(match self.flavour {
            Some(flavour) => spec.with_flavour(flavour),
            None => spec,
        })
    }
}

/// Does what the command says.
///
/// # Errors
/// As [`BundleCommandError`] says.
pub fn run(command: &Command) -> Result<(), BundleCommandError> {
    let store = BundleStore::of_user()?;
    let mut out = io::stdout().lock();
    match command {
        Command::Fetch { which, mirror } => {
            let bundle = fetch(&store, &which.spec()?, mirror.as_deref(), false)?;
            writeln!(out, "{}", bundle.directory.display())?;
        }
        Command::List => {
            for name in store.list() {
                let state = store.find(&name).map_or_else(|error| error.to_string(), |_| "ok".to_owned());
                writeln!(out, "{name:<24} {state}")?;
            }
        }
        Command::Verify(which) => {
            let id = which.spec()?.id();
            store.verify(&id)?;
            writeln!(out, "{id}: ok")?;
        }
        Command::Path(which) => {
            let id = which.spec()?.id();
            writeln!(out, "{}", store.find(&id)?.directory.display())?;
        }
    }
    Ok(())
}

/// What `boot` takes of the bundle `name`, which is made if it is not there.
///
/// # Errors
/// As [`BundleCommandError`] says.
pub fn boot_files(name: Option<&str>, mirror: Option<&str>, quiet: bool) -> Result<BootFiles, BundleCommandError> {
    let bundle = ready(name, mirror, quiet)?;
    let (kernel, initrds) = (bundle.kernel(), vec![bundle.initramfs()]);
    Ok(BootFiles { kernel, initrds, cmdline: String::new(), is_bundle: true })
}

/// The bundle `name`, which is made if it is not there, and made anew if another version of minivmm made it.
///
/// # Errors
/// As [`BundleCommandError`] says.
pub fn ready(name: Option<&str>, mirror: Option<&str>, quiet: bool) -> Result<Bundle, BundleCommandError> {
    let store = BundleStore::of_user()?;
    let spec = BundleSpec::from_id(name.unwrap_or(DEFAULT_BUNDLE))?;
    match store.find(&spec.id()) {
        Err(BundleError::Absent { .. }) => fetch(&store, &spec, mirror, quiet),
        Ok(old) if !old.is_current() => fetch(&store, &spec, mirror, quiet).or_else(|error| {
            tracing::warn!("bundle {} was made by another version of minivmm and cannot be made anew: {error}", old.id);
            Ok(old)
        }),
        found => Ok(found?),
    }
}

fn fetch(
    store: &BundleStore,
    spec: &BundleSpec,
    mirror: Option<&str>,
    quiet: bool,
) -> Result<Bundle, BundleCommandError> {
    let mirrors = Mirrors::discover(mirror, &Environment::of_process(), Path::new("/"));
    let keyring = Keyring::of_host(Path::new("/"))?;
    let options = FetchOptions { mirrors: &mirrors, keyring: &keyring, now: SystemTime::now() };
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::no_length() };
    let fetched = store.fetch(spec, &options, &Bar(bar.clone()));
    bar.finish_and_clear();
    Ok(fetched?)
}

/// A progress bar on standard error.
struct Bar(ProgressBar);

impl Progress for Bar {
    fn begin(&self, what: &str, total: u64) {
        let template = if total == 0 { "{spinner} {msg}" } else { "{msg} {wide_bar} {bytes}/{total_bytes} {eta}" };
        self.0.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.0.reset();
        self.0.set_length(total);
        self.0.set_message(what.to_owned());
        self.0.enable_steady_tick(Duration::from_millis(200));
    }

    fn advance(&self, done: u64) {
        self.0.set_position(done);
    }
}
