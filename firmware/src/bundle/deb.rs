//! Reading .deb packages: an `ar` archive with a tar of the files, compressed with xz, zstd or gzip (deb(5)).
//!
//! A package has been checked against its signed hash before it gets here; sizes are bounded all the same.

use std::io::Read;

/// The most that the files of a package may add up to.
pub const MAX_UNPACKED_BYTES: u64 = 4 << 30;

/// Why a package cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// The archive or what is in it is damaged.
    #[error("damaged package")]
    Damaged(#[source] std::io::Error),
    /// There is no data archive.
    #[error("package without data archive")]
    NoData,
    /// The data archive is compressed in a way not known here.
    #[error("data archive {name:?} is compressed in an unknown way")]
    UnknownCompression {
        /// Name of the archive member.
        name: String,
    },
}

/// What a path in a package is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A regular file.
    File(Vec<u8>),
    /// A directory.
    Directory,
    /// A symbolic link, with its target.
    Symlink(String),
    /// Another name of a file that came earlier: its path.
    Hardlink(String),
}

/// One entry of a package's data archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Without leading `./` or `/`, and without trailing `/`.
    pub path: String,
    /// Permission bits, set-id bits included.
    pub mode: u16,
    /// Owner's and group's number.
    pub owner: (u32, u32),
    /// What it is.
    pub content: Content,
}

/// Calls `visit` with the path (without leading `./`) and content of each regular file in the package whose path
/// satisfies `wanted`.
///
/// # Errors
/// [`DebError`]
pub fn read_files(
    package: &[u8],
    wanted: impl Fn(&str) -> bool,
    mut visit: impl FnMut(String, Vec<u8>),
) -> Result<(), DebError> {
    read_entries(package, wanted, |entry| {
        if let Content::File(content) = entry.content {
            visit(entry.path, content);
        }
    })
}

/// Calls `visit` with each entry of the package whose path satisfies `wanted`, in the archive's order. Devices, of which packages have
/// none, are passed over.
///
/// # Errors
/// [`DebError`]
pub fn read_entries(
    package: &[u8],
    wanted: impl Fn(&str) -> bool,
    mut visit: impl FnMut(Entry),
) -> Result<(), DebError> {
    let mut archive = ar::Archive::new(package);
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(DebError::Damaged)?;
        let name = String::from_utf8_lossy(member.header().identifier()).trim_end_matches('/').to_owned();
        let Some(compression) = name.strip_prefix("data.tar") else { continue };
        let reader: Box<dyn Read + '_> = match compression {
            "" => Box::new(member),
            ".xz" => Box::new(liblzma::read::XzDecoder::new(member)),
            ".gz" => Box::new(flate2::read::GzDecoder::new(member)),
            ".zst" => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(member);
                Box::new(decoder.map_err(|error| DebError::Damaged(std::io::Error::other(error)))?)
            }
            _ => return Err(DebError::UnknownCompression { name }),
        };
        return read_tar(reader.take(MAX_UNPACKED_BYTES), &wanted, &mut visit);
    }
    Err(DebError::NoData)
}

fn read_tar(reader: impl Read, wanted: &impl Fn(&str) -> bool, visit: &mut impl FnMut(Entry)) -> Result<(), DebError> {
    let mut tar = tar::Archive::new(reader);
    for entry in tar.entries().map_err(DebError::Damaged)? {
        let mut entry = entry.map_err(DebError::Damaged)?;
        let path = plain(&entry.path().map_err(DebError::Damaged)?.to_string_lossy());
        if !wanted(&path) {
            continue;
        }
        let kind = entry.header().entry_type();
        let target = entry.link_name().map_err(DebError::Damaged)?.unwrap_or_default().to_string_lossy().into_owned();
        let content = match kind {
            kind if kind.is_dir() => Content::Directory,
            kind if kind.is_symlink() => Content::Symlink(target),
            kind if kind.is_hard_link() => Content::Hardlink(plain(&target)),
            kind if kind.is_file() => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).map_err(DebError::Damaged)?;
                Content::File(content)
            }
            _ => continue,
        };
        let number = |field: std::io::Result<u64>| field.ok().and_then(|number| u32::try_from(number).ok());
        let mode = entry.header().mode().map_err(DebError::Damaged)? & 0o7777;
        let mode = u16::try_from(mode).unwrap_or(0);
        let owner = (number(entry.header().uid()).unwrap_or(0), number(entry.header().gid()).unwrap_or(0));
        visit(Entry { path, mode, owner, content });
    }
    Ok(())
}

/// `./usr/bin/` is `usr/bin`.
fn plain(path: &str) -> String {
    path.trim_start_matches("./").trim_matches('/').to_owned()
}

/// Unpacks xz, as in `Packages.xz` and `.ko.xz`, up to `limit` bytes.
///
/// # Errors
/// [`DebError::Damaged`], also where the content is larger.
pub fn unxz(bytes: &[u8], limit: u64) -> Result<Vec<u8>, DebError> {
    let mut out = Vec::new();
    let decoder = liblzma::read::XzDecoder::new(bytes);
    decoder.take(limit + 1).read_to_end(&mut out).map_err(DebError::Damaged)?;
    if out.len() as u64 > limit {
        return Err(DebError::Damaged(std::io::Error::other("larger than expected")));
    }
    Ok(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// A package with the given files, compressed with xz.
    pub(crate) fn package(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, *content).unwrap();
        }
        let mut archive = ar::Builder::new(Vec::new());
        let mut member = |name: &[u8], content: &[u8]| {
            archive.append(&ar::Header::new(name.to_vec(), content.len() as u64), content).unwrap();
        };
        member(b"debian-binary", b"2.0\n");
        member(b"data.tar.xz", &xz(&tar.into_inner().unwrap()));
        archive.into_inner().unwrap()
    }

    pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn wanted_files_are_found() {
        let package = package(&[("boot/vmlinuz", b"kernel"), ("usr/share/doc", b"text")]);
        let mut found = Vec::new();
        read_files(&package, |path| path.starts_with("boot/"), |path, content| found.push((path, content))).unwrap();
        assert_eq!(found, [("boot/vmlinuz".to_owned(), b"kernel".to_vec())]);
    }

    #[test]
    fn cut_off_package_is_damaged() {
        let mut package = package(&[("boot/vmlinuz", &[7; 5000])]);
        package.truncate(package.len() - 40);
        assert!(matches!(read_files(&package, |_| true, |_, _| ()), Err(DebError::Damaged(_))));
    }

    #[test]
    fn archive_without_data_is_told() {
        let mut archive = ar::Builder::new(Vec::new());
        archive.append(&ar::Header::new(b"debian-binary".to_vec(), 4), &b"2.0\n"[..]).unwrap();
        let bytes = archive.into_inner().unwrap();
        assert!(matches!(read_files(&bytes, |_| true, |_, _| ()), Err(DebError::NoData)));
    }

    #[test]
    fn unknown_compression_is_named() {
        let mut archive = ar::Builder::new(Vec::new());
        archive.append(&ar::Header::new(b"data.tar.lzo".to_vec(), 1), &b"x"[..]).unwrap();
        let error = read_files(&archive.into_inner().unwrap(), |_| true, |_, _| ()).unwrap_err();
        assert!(matches!(error, DebError::UnknownCompression { name } if name == "data.tar.lzo"));
    }

    #[test]
    fn unxz_stops_at_its_limit() {
        assert_eq!(unxz(&xz(b"12345"), 5).unwrap(), b"12345");
        assert!(unxz(&xz(b"12345"), 4).is_err());
    }
}
