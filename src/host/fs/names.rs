//! Names on a host that ignores case and normal forms (APFS as it comes).
//!
//! A Linux guest is told that names differ if their bytes do: a name that is found under another spelling does not exist, and cannot be
//! made either. The one exception: files (not directories, which have one entry in the guest's cache) are found under another *normal form*
//! of their name, since people cannot see the difference; the guest is told not to remember such a name.

use unicode_normalization::UnicodeNormalization;

/// How a name that the host found compares with the one that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// The same bytes.
    Exact,
    /// The same characters in another normal form.
    OtherForm,
    /// Another name, which the host takes for the same: it differs in case.
    OtherCase,
}

impl Spelling {
    /// Compares the name that was `asked` for with the one that is `stored`, which the host says are the same.
    pub fn of(asked: &[u8], stored: &[u8]) -> Self {
        if asked == stored {
            return Self::Exact;
        }
        match (std::str::from_utf8(asked), std::str::from_utf8(stored)) {
            (Ok(asked), Ok(stored)) if asked.nfd().eq(stored.nfd()) => Self::OtherForm,
            _ => Self::OtherCase,
        }
    }

    /// Whether a lookup finds a file under this spelling.
    pub fn is_found(self, is_directory: bool) -> bool {
        match self {
            Self::Exact => true,
            Self::OtherForm => !is_directory,
            Self::OtherCase => false,
        }
    }

    /// Whether a rename may take the place of what is there under this spelling: `is_itself` says that it is the very file that is moved.
    pub fn is_replaceable(self, is_itself: bool) -> bool {
        is_itself || self == Self::Exact
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_decide() {
        assert_eq!(Spelling::of(b"a", b"a"), Spelling::Exact);
        assert_eq!(Spelling::of(b"A", b"a"), Spelling::OtherCase);
        assert_eq!(Spelling::of("É".as_bytes(), "é".as_bytes()), Spelling::OtherCase);
        assert_eq!(Spelling::of("ß".as_bytes(), "SS".as_bytes()), Spelling::OtherCase);
        assert_eq!(Spelling::of(b"\xff", b"\xfe"), Spelling::OtherCase);
    }

    #[test]
    fn composed_and_decomposed_are_forms_of_one_name() {
        assert_eq!(Spelling::of("caf\u{e9}".as_bytes(), "cafe\u{301}".as_bytes()), Spelling::OtherForm);
        assert_eq!(Spelling::of("CAF\u{c9}".as_bytes(), "cafe\u{301}".as_bytes()), Spelling::OtherCase);
        assert_eq!(Spelling::of("\u{d55c}".as_bytes(), "\u{1112}\u{1161}\u{11ab}".as_bytes()), Spelling::OtherForm);
    }

    #[test]
    fn directory_is_found_under_its_own_spelling_only() {
        assert!(Spelling::Exact.is_found(true) && Spelling::OtherForm.is_found(false));
        assert!(!Spelling::OtherForm.is_found(true));
        assert!(!Spelling::OtherCase.is_found(false) && !Spelling::OtherCase.is_found(true));
    }

    #[test]
    fn only_the_file_itself_changes_its_case() {
        assert!(Spelling::OtherCase.is_replaceable(true));
        assert!(!Spelling::OtherCase.is_replaceable(false));
        assert!(!Spelling::OtherForm.is_replaceable(false));
        assert!(Spelling::Exact.is_replaceable(false));
    }
}
