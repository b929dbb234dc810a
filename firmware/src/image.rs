//! Linux kernels for arm64, in the forms that distributions ship, as a flat `Image` with its header read.
//!
//! Owns the 64-byte header of Documentation/arch/arm64/booting.rst, the compressed forms around it (gzip, zstd, and the
//! EFI "zboot" executable of drivers/firmware/efi/libstub/zboot-header.S), and the question where the image may go. It
//! knows nothing of the machine. A file is untrusted: sizes in it are checked, and decompression stops at
//! [`MAX_IMAGE_BYTES`].
//!
//! The surprise: `image_size` counts the BSS, so a file shorter than it is normal. A truncated file is recognized by the
//! section table of the PE header which every `Image` with an EFI stub carries.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

/// The largest kernel accepted, compressed or not. Debian's are around 40 MB.
pub const MAX_IMAGE_BYTES: u64 = 512 << 20;
/// booting.rst §4: the image is placed `text_offset` bytes from a base with this alignment.
pub const PLACEMENT_ALIGN: u64 = 2 << 20;

const HEADER_LEN: usize = 64;
/// What [`Header::parse`] looks at: the header and the table of PE sections.
pub const HEAD_BYTES: u64 = 64 << 10;
/// "ARM\x64", little-endian, at byte 56.
const ARM64_MAGIC: u32 = 0x644d_5241;
/// booting.rst: `text_offset` to assume where `image_size` is zero (before Linux 3.17).
const LEGACY_TEXT_OFFSET: u64 = 0x8_0000;
/// Bound of the loop over PE sections; an `Image` has two or three.
const MAX_PE_SECTIONS: u16 = 96;

/// Why a file is no kernel that can be booted.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file is empty.
    #[error("the file is empty")]
    Empty,
    /// The file ends before what its headers announce.
    #[error("the file is truncated: it has {len_bytes} bytes and should have at least {expected_bytes}")]
    Truncated {
        /// Bytes present.
        len_bytes: u64,
        /// Bytes that the headers announce.
        expected_bytes: u64,
    },
    /// A bzImage, or an x86 EFI executable.
    #[error("this is an x86 kernel; an arm64 one is needed")]
    X86,
    /// An ELF file, such as vmlinux.
    #[error("this is an ELF file; the flat `Image` (arch/arm64/boot/Image) is needed")]
    Elf,
    /// None of the known forms.
    #[error("this is not an arm64 Linux kernel")]
    NotAKernel,
    /// An arm64 kernel built for big-endian mode.
    #[error("this is a big-endian arm64 kernel; only little-endian ones run here")]
    BigEndian,
    /// The header's fields contradict each other.
    #[error("the kernel's header is damaged: text_offset {text_offset:#x}, image_size {image_size:#x}")]
    BadHeader {
        /// The field at byte 8.
        text_offset: u64,
        /// The field at byte 16.
        image_size: u64,
    },
    /// An EFI zboot file compressed in another way.
    #[error("the kernel is compressed with {method:?}; gzip and zstd are understood")]
    UnknownCompression {
        /// Name of the method, as in the file.
        method: String,
    },
    /// The compressed kernel is damaged or ends early.
    #[error("the compressed kernel is damaged or truncated")]
    Decompress(#[source] std::io::Error),
    /// Larger than any kernel.
    #[error("the kernel is larger than {} MiB", MAX_IMAGE_BYTES >> 20)]
    TooLarge,
    /// The file could not be read.
    #[error("cannot be read")]
    Read(#[source] std::io::Error),
    /// A directory was given.
    #[error("this is a directory")]
    Directory,
}

/// A kernel file that cannot be used, with its path.
#[derive(Debug, thiserror::Error)]
#[error("kernel {}", path.display())]
pub struct KernelFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub cause: ImageError,
}

/// Size of the pages that the kernel was built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// The header does not say.
    Unspecified,
    /// 4 KiB.
    Size4K,
    /// 16 KiB.
    Size16K,
    /// 64 KiB.
    Size64K,
}

/// How the kernel was wrapped in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A flat `Image`.
    Plain,
    /// A gzip-compressed `Image`.
    Gzip,
    /// A zstd-compressed `Image`.
    Zstd,
    /// An EFI executable around a compressed `Image`.
    Zboot,
}

impl Form {
    fn of(head: &[u8]) -> Self {
        if head.starts_with(&GZIP_MAGIC) {
            Self::Gzip
        } else if head.starts_with(&ZSTD_MAGIC) {
            Self::Zstd
        } else if head.starts_with(b"MZ") && head.get(4..8) == Some(b"zimg") {
            Self::Zboot
        } else {
            Self::Plain
        }
    }
}

/// The header's fields that matter for loading. Spec: booting.rst §3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes between a 2 MiB-aligned base and the image.
    pub text_offset: u64,
    /// Bytes of memory that the kernel needs from its first byte on, BSS included.
    pub image_size: u64,
    /// Bits 1 and 2 of the flags.
    pub page_size: PageSize,
    /// Bit 3 of the flags: any 2 MiB-aligned base will do. Otherwise it should be as low in memory as possible.
    pub anywhere: bool,
}

impl Header {
    /// Reads the header of an image of `len_bytes`, of which `image` is the beginning: [`HEAD_BYTES`], or all of it if it is shorter.
    ///
    /// # Errors
    /// Every variant of [`ImageError`] that concerns an uncompressed file.
    pub fn parse(image: &[u8], len_bytes: u64) -> Result<Self, ImageError> {
        if image.is_empty() {
            return Err(ImageError::Empty);
        }
        if u32_at(image, 56) != Some(ARM64_MAGIC) {
            return Err(unrecognized(image));
        }
        let (Some(text_offset), Some(image_size), Some(flags)) =
            (u64_at(image, 8), u64_at(image, 16), u64_at(image, 24))
        else {
            return Err(ImageError::NotAKernel);
        };
        if image.len() < HEADER_LEN {
            return Err(truncated(image, HEADER_LEN as u64));
        }
        if flags & 1 != 0 {
            return Err(ImageError::BigEndian);
        }
        if text_offset >= PLACEMENT_ALIGN || image_size > 2 * MAX_IMAGE_BYTES {
            return Err(ImageError::BadHeader { text_offset, image_size });
        }
        let expected_bytes = pe_file_size(image)?;
        if len_bytes < expected_bytes {
            return Err(ImageError::Truncated { len_bytes, expected_bytes });
        }
        let (text_offset, image_size) = match image_size {
            0 => (LEGACY_TEXT_OFFSET, len_bytes),
            size => (text_offset, size),
        };
        let page_size = match (flags >> 1) & 3 {
            0 => PageSize::Unspecified,
            1 => PageSize::Size4K,
            2 => PageSize::Size16K,
            _ => PageSize::Size64K,
        };
        Ok(Self { text_offset, image_size, page_size, anywhere: flags & 8 != 0 })
    }
}

/// A kernel ready to be put into guest memory.
#[derive(Debug)]
pub struct Kernel {
    content: Content,
    len_bytes: u64,
    header: Header,
    form: Form,
}

/// Where the flat image is.
#[derive(Debug)]
enum Content {
    /// In this file, which is read straight into guest memory.
    File(File),
    /// It had to be unwrapped.
    Bytes(Vec<u8>),
}

impl Kernel {
    /// Reads and unwraps the kernel in the file `path`.
    ///
    /// # Errors
    /// [`KernelFileError`] with the path and the cause.
    pub fn open(path: &Path) -> Result<Self, KernelFileError> {
        Self::from_path(path).map_err(|cause| KernelFileError { path: path.to_path_buf(), cause })
    }

    fn from_path(path: &Path) -> Result<Self, ImageError> {
        let mut file = File::open(path).map_err(ImageError::Read)?;
        let metadata = file.metadata().map_err(ImageError::Read)?;
        if metadata.is_dir() {
            return Err(ImageError::Directory);
        }
        let mut head = Vec::new();
        file.by_ref().take(HEAD_BYTES).read_to_end(&mut head).map_err(ImageError::Read)?;
        if metadata.is_file() && Form::of(&head) == Form::Plain {
            let len_bytes = metadata.len();
            if len_bytes > MAX_IMAGE_BYTES {
                return Err(ImageError::TooLarge);
            }
            let header = Header::parse(&head, len_bytes)?;
            return Ok(Self { content: Content::File(file), len_bytes, header, form: Form::Plain });
        }
        Self::parse(read_bounded(head.as_slice().chain(file), ImageError::Read)?)
    }

    /// Unwraps the kernel in `file`, in whatever form it is.
    ///
    /// # Errors
    /// [`ImageError`]
    pub fn parse(file: Vec<u8>) -> Result<Self, ImageError> {
        let form = Form::of(&file);
        let image = match form {
            Form::Plain => file,
            Form::Gzip => gunzip(&file)?,
            Form::Zstd => unzstd(&file)?,
            Form::Zboot => unwrap_zboot(&file)?,
        };
        let len_bytes = image.len() as u64;
        let header = Header::parse(&image, len_bytes)?;
        Ok(Self { content: Content::Bytes(image), len_bytes, header, form })
    }

    /// Puts the flat image at `at`.
    ///
    /// # Errors
    /// What vm-memory says: there is no such memory, or the file cannot be read.
    pub fn write_to<M: GuestMemoryBackend>(&self, memory: &M, at: GuestAddress) -> Result<(), GuestMemoryError> {
        match &self.content {
            Content::Bytes(image) => memory.write_slice(image, at),
            Content::File(file) => {
                let mut file = file;
                file.rewind().map_err(GuestMemoryError::IOError)?;
                // Not larger than MAX_IMAGE_BYTES.
                memory.read_exact_volatile_from(at, &mut file, usize::try_from(self.len_bytes).unwrap_or(usize::MAX))
            }
        }
    }

    /// What the image says about itself.
    #[must_use]
    pub fn header(&self) -> Header {
        self.header
    }

    /// How it was wrapped.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// Bytes that the kernel occupies from its first byte on: the image, and the BSS behind it.
    #[must_use]
    pub fn memory_size(&self) -> u64 {
        self.header.image_size.max(self.len_bytes)
    }
}

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

fn read_bounded(reader: impl Read, error: fn(std::io::Error) -> ImageError) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    reader.take(MAX_IMAGE_BYTES + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > MAX_IMAGE_BYTES {
        return Err(ImageError::TooLarge);
    }
    Ok(bytes)
}

fn gunzip(bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
    read_bounded(flate2::read::GzDecoder::new(bytes), ImageError::Decompress)
}

fn unzstd(bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
    let decoder = ruzstd::decoding::StreamingDecoder::new(bytes)
        .map_err(|error| ImageError::Decompress(std::io::Error::other(error)))?;
    read_bounded(decoder, ImageError::Decompress)
}

/// zboot-header.S: the payload's offset and size at bytes 8 and 12, the name of the compression at byte 24.
fn unwrap_zboot(file: &[u8]) -> Result<Vec<u8>, ImageError> {
    let (Some(offset), Some(size), Some(method)) = (u32_at(file, 8), u32_at(file, 12), file.get(24..56)) else {
        return Err(truncated(file, HEADER_LEN as u64));
    };
    let end = u64::from(offset) + u64::from(size);
    let payload = usize::try_from(offset).ok().zip(usize::try_from(end).ok()).and_then(|(from, to)| file.get(from..to));
    let payload = payload.ok_or_else(|| truncated(file, end))?;
    let method = method.split(|byte| *byte == 0).next().unwrap_or_default();
    match method {
        b"gzip" => gunzip(payload),
        b"zstd" | b"zstd22" => unzstd(payload),
        other => Err(ImageError::UnknownCompression { method: String::from_utf8_lossy(other).into_owned() }),
    }
}

/// Names the cause for a file without the arm64 magic.
fn unrecognized(file: &[u8]) -> ImageError {
    // Documentation/arch/x86/boot.rst: boot flag at 0x1fe, "HdrS" at 0x202.
    if file.get(0x202..0x206) == Some(b"HdrS") && file.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) {
        return ImageError::X86;
    }
    if file.starts_with(b"\x7fELF") {
        return ImageError::Elf;
    }
    if file.len() < HEADER_LEN && (file.starts_with(b"MZ") || file.iter().all(|byte| *byte == 0)) {
        return truncated(file, HEADER_LEN as u64);
    }
    ImageError::NotAKernel
}

/// Bytes that the PE section table says the file has; zero for an image without EFI stub.
fn pe_file_size(image: &[u8]) -> Result<u64, ImageError> {
    let pe = match u32_at(image, 60) {
        Some(offset) if offset != 0 && image.starts_with(b"MZ") => offset as usize,
        _ => return Ok(0),
    };
    let short = || truncated(image, pe as u64 + 24);
    if image.get(pe..pe.saturating_add(4)).ok_or_else(short)? != b"PE\0\0" {
        return Ok(0);
    }
    let sections = u16_at(image, pe + 6).ok_or_else(short)?.min(MAX_PE_SECTIONS);
    let optional_len = u16_at(image, pe + 20).ok_or_else(short)?;
    let table = pe + 24 + usize::from(optional_len);
    let mut end = 0;
    for section in 0..usize::from(sections) {
        let at = table + section * 40;
        let (Some(size), Some(offset)) = (u32_at(image, at + 16), u32_at(image, at + 20)) else {
            return Err(truncated(image, at as u64 + 40));
        };
        end = end.max(u64::from(size) + u64::from(offset));
    }
    Ok(end)
}

fn truncated(file: &[u8], expected_bytes: u64) -> ImageError {
    ImageError::Truncated { len_bytes: file.len() as u64, expected_bytes }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// A header as an `Image` with 4 KiB pages has it, and some bytes of code.
    /// What `kernel` puts into memory.
    fn image_of(kernel: &Kernel) -> Vec<u8> {
        let memory = vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        kernel.write_to(&memory, GuestAddress(0)).unwrap();
        let mut image = plain_image();
        memory.read_slice(&mut image, GuestAddress(0)).unwrap();
        image
    }

    pub(crate) fn plain_image() -> Vec<u8> {
        let mut image = vec![0xaa; 4096];
        image[..64].fill(0);
        image[16..24].copy_from_slice(&0x3_0000_u64.to_le_bytes());
        image[24..32].copy_from_slice(&0b1010_u64.to_le_bytes());
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn zboot(method: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 128];
        file[..2].copy_from_slice(b"MZ");
        file[4..8].copy_from_slice(b"zimg");
        file[8..12].copy_from_slice(&128_u32.to_le_bytes());
        file[12..16].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        file[24..24 + method.len()].copy_from_slice(method);
        file.extend_from_slice(payload);
        file
    }

    #[test]
    fn plain_image_yields_its_header() {
        let kernel = Kernel::parse(plain_image()).unwrap();
        let header = Header { text_offset: 0, image_size: 0x3_0000, page_size: PageSize::Size4K, anywhere: true };
        assert_eq!((kernel.header(), kernel.form()), (header, Form::Plain));
        assert_eq!(kernel.memory_size(), 0x3_0000);
    }

    #[test]
    fn header_of_16k_kernel_says_so() {
        let mut image = plain_image();
        image[24] = 0b1100;
        assert_eq!(Header::parse(&image, image.len() as u64).unwrap().page_size, PageSize::Size16K);
    }

    #[test]
    fn zero_image_size_means_the_old_text_offset() {
        let mut image = plain_image();
        image[16..24].fill(0);
        let header = Header::parse(&image, image.len() as u64).unwrap();
        assert_eq!((header.text_offset, header.image_size), (0x8_0000, 4096));
    }

    #[test]
    fn plain_file_is_read_into_memory_as_often_as_wanted() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, &plain_image()).unwrap();
        let kernel = Kernel::open(file.path()).unwrap();
        assert_eq!((image_of(&kernel), image_of(&kernel)), (plain_image(), plain_image()));
    }

    #[test]
    fn gzip_image_is_unwrapped() {
        let kernel = Kernel::parse(gzip(&plain_image())).unwrap();
        assert_eq!((image_of(&kernel), kernel.form()), (plain_image(), Form::Gzip));
    }

    #[test]
    fn zstd_image_is_unwrapped() {
        let kernel = Kernel::parse(zstd(&plain_image())).unwrap();
        assert_eq!((image_of(&kernel), kernel.form()), (plain_image(), Form::Zstd));
    }

    #[test]
    fn zboot_with_gzip_is_unwrapped() {
        let kernel = Kernel::parse(zboot(b"gzip", &gzip(&plain_image()))).unwrap();
        assert_eq!((image_of(&kernel), kernel.form()), (plain_image(), Form::Zboot));
    }

    #[test]
    fn zboot_with_zstd_and_the_appended_size_is_unwrapped() {
        let mut payload = zstd(&plain_image());
        payload.extend_from_slice(&4096_u32.to_le_bytes());
        assert_eq!(image_of(&Kernel::parse(zboot(b"zstd22", &payload)).unwrap()), plain_image());
    }

    #[test]
    fn zboot_with_another_compression_names_it() {
        let error = Kernel::parse(zboot(b"lzma", b"x")).unwrap_err();
        assert!(matches!(error, ImageError::UnknownCompression { method } if method == "lzma"));
    }

    #[test]
    fn zboot_whose_payload_is_cut_off_is_truncated() {
        let mut file = zboot(b"gzip", &gzip(&plain_image()));
        file.truncate(140);
        assert!(matches!(Kernel::parse(file), Err(ImageError::Truncated { len_bytes: 140, .. })));
    }

    #[test]
    fn empty_file_is_named() {
        assert!(matches!(Kernel::parse(Vec::new()), Err(ImageError::Empty)));
    }

    #[test]
    fn short_file_is_truncated() {
        assert!(matches!(Kernel::parse(b"MZ\0\0".to_vec()), Err(ImageError::Truncated { .. })));
    }

    #[test]
    fn cut_off_gzip_is_an_error() {
        let mut file = gzip(&plain_image());
        file.truncate(file.len() / 2);
        assert!(matches!(Kernel::parse(file), Err(ImageError::Decompress(_))));
    }

    #[test]
    fn cut_off_zstd_is_an_error() {
        let mut file = zstd(&plain_image());
        file.truncate(file.len() / 2);
        assert!(matches!(Kernel::parse(file), Err(ImageError::Decompress(_))));
    }

    #[test]
    fn image_shorter_than_its_pe_sections_is_truncated() {
        let mut image = plain_image();
        image[..2].copy_from_slice(b"MZ");
        image[60..64].copy_from_slice(&64_u32.to_le_bytes());
        image[64..68].copy_from_slice(b"PE\0\0");
        image[70..72].copy_from_slice(&1_u16.to_le_bytes());
        image[84..86].copy_from_slice(&0_u16.to_le_bytes());
        image[88 + 16..88 + 20].copy_from_slice(&0x2000_u32.to_le_bytes());
        image[88 + 20..88 + 24].copy_from_slice(&0x1000_u32.to_le_bytes());
        let error = Kernel::parse(image).unwrap_err();
        assert!(matches!(error, ImageError::Truncated { len_bytes: 4096, expected_bytes: 0x3000 }));
    }

    #[test]
    fn x86_kernel_is_called_one() {
        let mut file = vec![0; 4096];
        file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        file[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(matches!(Kernel::parse(file), Err(ImageError::X86)));
    }

    #[test]
    fn elf_file_is_called_one() {
        assert!(matches!(Kernel::parse(b"\x7fELF and so on".repeat(20)), Err(ImageError::Elf)));
    }

    #[test]
    fn text_file_is_not_a_kernel() {
        assert!(matches!(Kernel::parse(b"hello world\n".repeat(50)), Err(ImageError::NotAKernel)));
    }

    #[test]
    fn big_endian_kernel_is_refused() {
        let mut image = plain_image();
        image[24] |= 1;
        assert!(matches!(Kernel::parse(image), Err(ImageError::BigEndian)));
    }

    #[test]
    fn absurd_image_size_is_refused() {
        let mut image = plain_image();
        image[16..24].fill(0xff);
        assert!(matches!(Kernel::parse(image), Err(ImageError::BadHeader { .. })));
    }

    #[test]
    fn gzip_that_expands_without_end_is_stopped() {
        let zeroes = std::io::repeat(0).take(MAX_IMAGE_BYTES + 2);
        let mut file = Vec::new();
        flate2::read::GzEncoder::new(zeroes, flate2::Compression::fast()).read_to_end(&mut file).unwrap();
        assert!(matches!(Kernel::parse(file), Err(ImageError::TooLarge)));
    }

    #[test]
    fn missing_file_and_directory_are_told_with_their_path() {
        let directory = tempfile::tempdir().unwrap();
        let missing = Kernel::open(&directory.path().join("Image")).unwrap_err();
        assert!(missing.to_string().ends_with("Image") && matches!(missing.cause, ImageError::Read(_)));
        assert!(matches!(Kernel::open(directory.path()).unwrap_err().cause, ImageError::Directory));
    }
}
