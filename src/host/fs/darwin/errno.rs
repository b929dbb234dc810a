//! Error numbers of XNU as Linux numbers (`bsd/sys/errno.h` against `asm-generic/errno.h`).
//!
//! Up to 34 both have what Unix had, except for `EDEADLK`/`EAGAIN`; beyond, nearly all differ.

use minivmm_devices::virtio::fs::errno::Errno;

/// Pairs of XNU's number and Linux's, beyond the common ones.
const DIFFERENT: [(i32, i32); 67] = [
    (11, 35),   // EDEADLK
    (35, 11),   // EAGAIN
    (36, 115),  // EINPROGRESS
    (37, 114),  // EALREADY
    (38, 88),   // ENOTSOCK
    (39, 89),   // EDESTADDRREQ
    (40, 90),   // EMSGSIZE
    (41, 91),   // EPROTOTYPE
    (42, 92),   // ENOPROTOOPT
    (43, 93),   // EPROTONOSUPPORT
    (44, 94),   // ESOCKTNOSUPPORT
    (45, 95),   // ENOTSUP: EOPNOTSUPP
    (46, 96),   // EPFNOSUPPORT
    (47, 97),   // EAFNOSUPPORT
    (48, 98),   // EADDRINUSE
    (49, 99),   // EADDRNOTAVAIL
    (50, 100),  // ENETDOWN
    (51, 101),  // ENETUNREACH
    (52, 102),  // ENETRESET
    (53, 103),  // ECONNABORTED
    (54, 104),  // ECONNRESET
    (55, 105),  // ENOBUFS
    (56, 106),  // EISCONN
    (57, 107),  // ENOTCONN
    (58, 108),  // ESHUTDOWN
    (59, 109),  // ETOOMANYREFS
    (60, 110),  // ETIMEDOUT
    (61, 111),  // ECONNREFUSED
    (62, 40),   // ELOOP
    (63, 36),   // ENAMETOOLONG
    (64, 112),  // EHOSTDOWN
    (65, 113),  // EHOSTUNREACH
    (66, 39),   // ENOTEMPTY
    (67, 11),   // EPROCLIM: EAGAIN, as fork(2) says on Linux
    (68, 87),   // EUSERS
    (69, 122),  // EDQUOT
    (70, 116),  // ESTALE
    (71, 66),   // EREMOTE
    (72, 5),    // EBADRPC
    (73, 5),    // ERPCMISMATCH
    (74, 5),    // EPROGUNAVAIL
    (75, 5),    // EPROGMISMATCH
    (76, 5),    // EPROCUNAVAIL
    (77, 37),   // ENOLCK
    (78, 95),   // ENOSYS: of one file, so not Linux's, which would be of all for ever
    (79, 22),   // EFTYPE
    (80, 13),   // EAUTH
    (81, 13),   // ENEEDAUTH
    (82, 5),    // EPWROFF
    (83, 5),    // EDEVERR
    (84, 75),   // EOVERFLOW
    (85, 8),    // EBADEXEC: ENOEXEC
    (86, 8),    // EBADARCH
    (87, 8),    // ESHLIBVERS
    (88, 8),    // EBADMACHO
    (89, 125),  // ECANCELED
    (90, 43),   // EIDRM
    (91, 42),   // ENOMSG
    (92, 22),   // EILSEQ: a name that is no UTF-8
    (93, 61),   // ENOATTR: ENODATA
    (94, 74),   // EBADMSG
    (95, 72),   // EMULTIHOP
    (96, 61),   // ENODATA
    (97, 67),   // ENOLINK
    (100, 71),  // EPROTO
    (102, 95),  // EOPNOTSUPP
    (106, 105), // EQFULL: ENOBUFS
];

/// The Linux error for XNU's `number`; `EIO` for one that is not known.
pub fn to_linux(number: i32) -> Errno {
    let different = DIFFERENT.iter().find(|(darwin, _)| *darwin == number).map(|(_, linux)| *linux);
    // ENOTBLK is 15, ETXTBSY 26, and all up to ERANGE are the same.
    let linux = different.or_else(|| (1..=34).contains(&number).then_some(number));
    linux.map_or(Errno::EIO, Errno::from_linux)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_files_give_are_translated() {
        let expected = [
            (1, Errno::EPERM),
            (2, Errno::ENOENT),
            (11, Errno::EDEADLK),
            (13, Errno::EACCES),
            (17, Errno::EEXIST),
            (28, Errno::ENOSPC),
            (34, Errno::ERANGE),
            (35, Errno::EAGAIN),
            (45, Errno::EOPNOTSUPP),
            (60, Errno::ETIMEDOUT),
            (62, Errno::ELOOP),
            (63, Errno::ENAMETOOLONG),
            (66, Errno::ENOTEMPTY),
            (69, Errno::EDQUOT),
            (70, Errno::ESTALE),
            (84, Errno::EOVERFLOW),
            (92, Errno::EINVAL),
            (93, Errno::ENODATA),
            (96, Errno::ENODATA),
            (102, Errno::EOPNOTSUPP),
        ];
        for (darwin, linux) in expected {
            assert_eq!(to_linux(darwin), linux, "{darwin}");
        }
    }

    #[test]
    fn one_file_never_says_enosys() {
        assert!((0..200).all(|number| to_linux(number) != Errno::ENOSYS));
    }

    #[test]
    fn unknown_numbers_are_io_errors() {
        for number in [0, -1, 98, 99, 107, 1000, i32::MIN] {
            assert_eq!(to_linux(number), Errno::EIO, "{number}");
        }
    }

    #[test]
    fn every_number_is_in_the_table_once() {
        assert!(DIFFERENT.is_sorted_by(|a, b| a.0 < b.0));
    }
}
