//! Kernel modules: which ones a guest needs, in which order they load, and the files that `modprobe` reads.
//!
//! Debian's packages carry no `modules.dep` (it is made where they are installed), so dependencies and aliases come from
//! the `.modinfo` section of the modules themselves. Spec: ELF-64 object file format; modules.dep(5).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::deb::{self, DebError};

const MAX_MODULE_BYTES: u64 = 256 << 20;

/// Why the modules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A module cannot be unpacked.
    #[error("kernel module {path}")]
    Damaged {
        /// Its path in the package.
        path: String,
        /// Why.
        #[source]
        source: DebError,
    },
    /// A module is not an ELF file with a `.modinfo` section.
    #[error("kernel module {path} is not understood")]
    NotAModule {
        /// Its path in the package.
        path: String,
    },
    /// The kernel has a needed driver neither built in nor as a module.
    #[error("the kernel has no {name}")]
    Missing {
        /// The module's name.
        name: String,
    },
}

/// The modules of one kernel, as its package has them: path below `lib/modules/VERSION` to (compressed) content.
#[derive(Clone, Debug, Default)]
pub struct Modules {
    files: BTreeMap<String, Vec<u8>>,
    /// By name, with underscores.
    paths: BTreeMap<String, String>,
    builtin: BTreeSet<String>,
}

/// Modules chosen for a guest.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    /// Path (ending in `.ko`) and content of each, in an order in which they can be loaded.
    pub files: Vec<(String, Vec<u8>)>,
    /// Text of `modules.dep`.
    pub dep: String,
    /// Text of `modules.alias`.
    pub alias: String,
}

impl Chosen {
    /// Without the signatures, which the kernel then does not check.
    #[must_use]
    pub fn unsigned(mut self) -> Self {
        for (_, content) in &mut self.files {
            let len = len_without_signature(content);
            content.truncate(len);
        }
        self
    }
}

impl Modules {
    /// Takes the file `path` of the package: a module, or `modules.builtin`. Others are ignored.
    pub fn add(&mut self, path: &str, content: Vec<u8>) {
        if path == "modules.builtin" {
            let text = String::from_utf8_lossy(&content);
            self.builtin.extend(text.lines().filter_map(module_name));
        } else if let Some(name) = module_name(path) {
            self.paths.insert(name, path.to_owned());
            self.files.insert(path.to_owned(), content);
        }
    }

    /// Names of all modules in the directories that `prefixes` begin, in the order of their paths.
    #[must_use]
    pub fn names_below(&self, prefixes: &[&str]) -> Vec<String> {
        let chosen = self.files.keys().filter(|path| prefixes.iter().any(|prefix| path.starts_with(prefix)));
        chosen.filter_map(|path| module_name(path)).collect()
    }

    /// The modules `required` and those of `optional` that exist, with all that they depend on.
    ///
    /// # Errors
    /// [`ModuleError`]
    pub fn choose(&self, required: &[&str], optional: &[&str]) -> Result<Chosen, ModuleError> {
        let mut chosen = Chosen::default();
        let mut done = BTreeSet::new();
        for name in required {
            self.visit(name, &mut done, &mut chosen)?;
        }
        for name in optional.iter().filter(|name| self.paths.contains_key(**name)) {
            self.visit(name, &mut done, &mut chosen)?;
        }
        Ok(chosen)
    }

    /// Adds `name` after its dependencies. `done` ends the recursion also where dependencies are circular.
    fn visit(&self, name: &str, done: &mut BTreeSet<String>, chosen: &mut Chosen) -> Result<Vec<String>, ModuleError> {
        if self.builtin.contains(name) {
            return Ok(Vec::new());
        }
        let missing = || ModuleError::Missing { name: name.to_owned() };
        let path = self.paths.get(name).ok_or_else(missing)?;
        let packed = self.files.get(path).ok_or_else(missing)?;
        let (plain_path, content) = match path.strip_suffix(".xz") {
            Some(plain) => {
                let content = deb::unxz(packed, MAX_MODULE_BYTES);
                (plain, content.map_err(|source| ModuleError::Damaged { path: path.clone(), source })?)
            }
            None => (path.as_str(), packed.clone()),
        };
        let info = modinfo(&content).ok_or_else(|| ModuleError::NotAModule { path: path.clone() })?;
        let fresh = done.insert(name.to_owned());
        let mut all = Vec::new();
        if fresh {
            let depends = info.iter().filter_map(|entry| entry.strip_prefix("depends="));
            for dependency in depends.flat_map(|list| list.split(',')).filter(|name| !name.is_empty()) {
                all.extend(self.visit(&dependency.replace('-', "_"), done, chosen)?);
            }
            all.dedup();
            // Writing to a String cannot fail.
            let _ = writeln!(chosen.dep, "{plain_path}:{}", all.iter().rev().fold(String::new(), |t, d| t + " " + d));
            for alias in info.iter().filter_map(|entry| entry.strip_prefix("alias=")) {
                let _ = writeln!(chosen.alias, "alias {alias} {name}");
            }
            chosen.files.push((plain_path.to_owned(), content));
        } else if let Some(line) = chosen.dep.lines().find_map(|line| line.strip_prefix(plain_path)?.strip_prefix(':'))
        {
            all.extend(line.split_whitespace().rev().map(str::to_owned));
        }
        all.push(plain_path.to_owned());
        Ok(all)
    }
}

/// `kernel/x/virtio-rng.ko.xz` is the module `virtio_rng`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let name = file.strip_suffix(".ko").or_else(|| file.strip_suffix(".ko.xz"))?;
    Some(name.replace('-', "_"))
}

/// What of the module is not its signature. Spec: Linux, `include/linux/module_signature.h`: the signature, a descriptor whose last four bytes are the
/// signature's length, most significant first, and the marker.
fn len_without_signature(module: &[u8]) -> usize {
    const MARKER: &[u8] = b"~Module signature appended~\n";
    const DESCRIPTOR_BYTES: usize = 12;
    let len = || {
        let (before, length) = module.strip_suffix(MARKER)?.split_last_chunk::<4>()?;
        let signature = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        before.len().checked_sub(DESCRIPTOR_BYTES - 4)?.checked_sub(signature)
    };
    len().unwrap_or(module.len())
}

/// The NUL-separated strings of the section `.modinfo`.
fn modinfo(elf: &[u8]) -> Option<Vec<String>> {
    if elf.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let table = usize::try_from(number(elf, 0x28, 8)?).ok()?;
    let entry_size = usize::try_from(number(elf, 0x3a, 2)?).ok()?;
    let count = usize::try_from(number(elf, 0x3c, 2)?).ok()?;
    let names_index = usize::try_from(number(elf, 0x3e, 2)?).ok()?;
    let section = |index: usize| -> Option<(usize, &[u8])> {
        let header = table.checked_add(index.checked_mul(entry_size)?)?;
        let name = usize::try_from(number(elf, header, 4)?).ok()?;
        let offset = usize::try_from(number(elf, header.checked_add(0x18)?, 8)?).ok()?;
        let size = usize::try_from(number(elf, header.checked_add(0x20)?, 8)?).ok()?;
        Some((name, elf.get(offset..offset.checked_add(size)?)?))
    };
    let (_, names) = section(names_index)?;
    let is_modinfo = |name: usize| names.get(name..).is_some_and(|rest| rest.starts_with(b".modinfo\0"));
    let (_, content) = (0..count).filter_map(section).find(|(name, _)| is_modinfo(*name))?;
    let strings = content.split(|byte| *byte == 0).filter(|string| !string.is_empty());
    Some(strings.map(|string| String::from_utf8_lossy(string).into_owned()).collect())
}

fn number(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(width)?)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ELF file with only a `.modinfo` section and the section names.
    pub(crate) fn module(modinfo: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0";
        let mut elf = vec![0; 64];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf.extend_from_slice(names);
        elf.extend_from_slice(modinfo.as_bytes());
        let table = elf.len();
        let mut header = |name: u32, offset: usize, size: usize| {
            let mut section = [0; 64];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
            section[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            elf.extend_from_slice(&section);
        };
        header(0, 64, names.len());
        header(1, 64 + names.len(), modinfo.len());
        elf[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        elf[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
        elf[0x3c..0x3e].copy_from_slice(&2_u16.to_le_bytes());
        elf
    }

    fn modules() -> Modules {
        let mut modules = Modules::default();
        modules.add("modules.builtin", b"kernel/a/core-thing.ko\n".to_vec());
        modules.add("kernel/n/virtio_net.ko.xz", deb::tests::xz(&module("depends=net-failover,core_thing\0")));
        modules.add("kernel/n/net_failover.ko", module("depends=failover\0alias=virtio:d1v*\0"));
        modules.add("kernel/n/failover.ko", module("license=GPL\0depends=\0"));
        modules
    }

    #[test]
    fn dependencies_come_first() {
        let chosen = modules().choose(&["virtio_net"], &[]).unwrap();
        let order: Vec<&str> = chosen.files.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(order, ["kernel/n/failover.ko", "kernel/n/net_failover.ko", "kernel/n/virtio_net.ko"]);
        assert!(chosen.dep.contains("kernel/n/virtio_net.ko: kernel/n/net_failover.ko kernel/n/failover.ko\n"));
        assert_eq!(chosen.alias, "alias virtio:d1v* net_failover\n");
    }

    #[test]
    fn signature_is_cut_off_where_there_is_one() {
        let plain = module("depends=\0");
        let signed = |len: u32| {
            [&plain[..], b"signature", &[0; 8], &len.to_be_bytes(), b"~Module signature appended~\n"].concat()
        };
        let mut modules = Modules::default();
        modules.add("kernel/plain.ko", plain.clone());
        modules.add("kernel/signed.ko", signed(9));
        modules.add("kernel/wrong.ko", signed(u32::MAX));
        let chosen = modules.choose(&["plain", "signed", "wrong"], &[]).unwrap().unsigned();
        let contents: Vec<&[u8]> = chosen.files.iter().map(|(_, content)| &content[..]).collect();
        assert_eq!(contents, [&plain, &plain, &signed(u32::MAX)]);
    }

    #[test]
    fn builtin_is_enough_and_absent_optional_modules_are_left_out() {
        assert!(modules().choose(&["core_thing"], &["no_such"]).unwrap().files.is_empty());
    }

    #[test]
    fn directories_are_listed_by_name() {
        assert_eq!(modules().names_below(&["kernel/n/n", "kernel/x"]), ["net_failover"]);
        assert_eq!(modules().names_below(&["kernel/"]), ["failover", "net_failover", "virtio_net"]);
    }

    #[test]
    fn missing_required_module_is_named() {
        let error = modules().choose(&["virtio_blk"], &[]).unwrap_err();
        assert!(matches!(error, ModuleError::Missing { name } if name == "virtio_blk"));
    }

    #[test]
    fn circular_dependencies_end() {
        let mut modules = Modules::default();
        modules.add("a.ko", module("depends=b\0"));
        modules.add("b.ko", module("depends=a\0"));
        assert_eq!(modules.choose(&["a"], &[]).unwrap().files.len(), 2);
    }

    #[test]
    fn file_that_is_no_module_is_told() {
        let mut modules = Modules::default();
        modules.add("a.ko", b"\x7fELF\x02 and no more".to_vec());
        modules.add("b.ko.xz", b"not xz".to_vec());
        assert!(matches!(modules.choose(&["a"], &[]), Err(ModuleError::NotAModule { .. })));
        assert!(matches!(modules.choose(&["b"], &[]), Err(ModuleError::Damaged { .. })));
    }
}
