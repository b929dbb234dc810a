//! Data processing on general-purpose registers (Arm ARM C4.1.93, C4.1.95).

use super::{Class, encodings};

pub(super) const CLASSES: &[Class] = &[
    encodings("pc-relative address", 2, &["p ii 10000 iiiiiiiiiiiiiiiiiii ddddd"]),
    encodings("add and subtract, immediate", 4, &["... 100010 h iiiiiiiiiiii nnnnn ddddd"]),
    encodings(
        "logical, immediate",
        5,
        &[
            "... 100100 . rrrrrr iiiiii nnnnn ddddd",
            "1.. 100100 . rrrrrr iiiiii nnnnn ddddd",
            "0.. 100100 0 rrrrrr iiiiii nnnnn ddddd",
        ],
    ),
    encodings("move wide", 2, &["... 100101 hh iiiiiiiiiiiiiiii ddddd"]),
    encodings(
        "bitfield",
        5,
        &[
            "1.. 100110 1 rrrrrr iiiiii nnnnn ddddd",
            "0.. 100110 0 0rrrrr 0iiiii nnnnn ddddd",
            "... 100110 . rrrrrr iiiiii nnnnn ddddd",
        ],
    ),
    encodings(
        "extract",
        3,
        &[
            "1 00 100111 10 mmmmm iiiiii nnnnn ddddd",
            "0 00 100111 00 mmmmm 0iiiii nnnnn ddddd",
            "... 100111 .. mmmmm iiiiii nnnnn ddddd",
        ],
    ),
    encodings("logical, shifted register", 5, &["... 01010 hh . mmmmm iiiiii nnnnn ddddd"]),
    encodings("add and subtract, shifted register", 5, &["... 01011 hh 0 mmmmm iiiiii nnnnn ddddd"]),
    encodings("add and subtract, extended register", 5, &["... 01011 001 mmmmm ooo iii nnnnn ddddd"]),
    encodings("add and subtract, with carry", 4, &["... 11010000 mmmmm 000000 nnnnn ddddd"]),
    encodings(
        "flag manipulation",
        3,
        &[
            "1 0 1 11010000 iiiiii 00001 nnnnn 0 ffff",
            "0 0 1 11010000 000000 . 0010 nnnnn 0 1101",
            "1101010100000 000 0100 0000 0 00 11111",
            "... 11010000 ...... ..... nnnnn . ....",
        ],
    ),
    encodings(
        "conditional compare",
        4,
        &["o . 1 11010010 mmmmm cccc . 0 nnnnn 0 ffff", "... 11010010 mmmmm cccc . . nnnnn . ffff"],
    ),
    encodings(
        "conditional select",
        4,
        &["o . 0 11010100 mmmmm cccc 0 . nnnnn ddddd", "... 11010100 mmmmm cccc .. nnnnn ddddd"],
    ),
    encodings(
        "divide and variable shift",
        4,
        &[". 00 11010110 mmmmm 00001 . nnnnn ddddd", ". 00 11010110 mmmmm 0010 .. nnnnn ddddd"],
    ),
    encodings(
        "crc32",
        3,
        &[
            "0 00 11010110 mmmmm 010 . 00 nnnnn ddddd",
            "1 00 11010110 mmmmm 010 . 11 nnnnn ddddd",
            ". 00 11010110 mmmmm 010 ... nnnnn ddddd",
        ],
    ),
    encodings("two sources, any", 2, &["... 11010110 mmmmm oooooo nnnnn ddddd"]),
    encodings("one source", 4, &[". 10 11010110 00000 000 ... nnnnn ddddd", ". 10 11010110 ..... oooooo nnnnn ddddd"]),
    encodings(
        "multiply",
        5,
        &[
            ". 00 11011 000 mmmmm . aaaaa nnnnn ddddd",
            "1 00 11011 . 01 mmmmm . aaaaa nnnnn ddddd",
            "1 00 11011 . 10 mmmmm 0 11111 nnnnn ddddd",
            "... 11011 ... mmmmm . aaaaa nnnnn ddddd",
        ],
    ),
    encodings("data processing, immediate, any", 3, &["... 100 .......................... "]),
    encodings("data processing, register, any", 3, &["... . 101 ........................."]),
];
