//! Data processing: scalar floating point, Advanced SIMD, and the cryptographic instructions (Arm ARM C4.1.96).

use super::{Class, encodings};

pub(super) const CLASSES: &[Class] = &[
    encodings(
        "fp and fixed point",
        6,
        &[
            ". 00 11110 0. 0 0. 0 1. iiiiii nnnnn ddddd",
            ". 00 11110 0. 0 .. ... iiiiii nnnnn ddddd",
            "... 11110 .. 0 .. ... iiiiii nnnnn ddddd",
        ],
    ),
    encodings(
        "fp and integer",
        10,
        &[". 00 11110 0. 1 .. ... 000000 nnnnn ddddd", ". 00 11110 .. 1 .. ... 000000 nnnnn ddddd"],
    ),
    encodings(
        "fp, one source",
        10,
        &[
            "000 11110 0. 1 0..... 10000 nnnnn ddddd",
            "000 11110 .. 1 000... 10000 nnnnn ddddd",
            "... 11110 .. 1 ...... 10000 nnnnn ddddd",
        ],
    ),
    encodings(
        "fp, compare",
        4,
        &["000 11110 0. 1 mmmmm 00 1000 nnnnn .. 000", "000 11110 .. 1 mmmmm .. 1000 nnnnn .. .00"],
    ),
    encodings(
        "fp, immediate",
        1,
        &["000 11110 0. 1 iiiiiiii 100 00000 ddddd", "000 11110 .. 1 iiiiiiii 100 0000. ddddd"],
    ),
    encodings("fp, conditional compare", 3, &["000 11110 0. 1 mmmmm cccc 01 nnnnn . ffff"]),
    encodings(
        "fp, two sources",
        10,
        &["000 11110 0. 1 mmmmm .... 10 nnnnn ddddd", "000 11110 .. 1 mmmmm .... 10 nnnnn ddddd"],
    ),
    encodings("fp, conditional select", 2, &["000 11110 0. 1 mmmmm cccc 11 nnnnn ddddd"]),
    encodings(
        "fp, three sources",
        10,
        &["000 11111 0. . mmmmm . aaaaa nnnnn ddddd", "000 11111 .. . mmmmm . aaaaa nnnnn ddddd"],
    ),
    encodings(
        "aes and sha",
        4,
        &[
            "01001110 00 10100 001.. 10 nnnnn ddddd",
            "01011110 00 0 mmmmm 0 ... 00 nnnnn ddddd",
            "01011110 00 10100 000.. 10 nnnnn ddddd",
            "01001110 .. 10100 ..... 10 nnnnn ddddd",
            "01011110 .. 0 mmmmm 0 ... 00 nnnnn ddddd",
            "01011110 .. 10100 ..... 10 nnnnn ddddd",
        ],
    ),
    encodings("sha512 and sha3 space", 1, &["11001110 ... mmmmm ...... nnnnn ddddd"]),
    encodings(
        "scalar, copy",
        2,
        &["01 0 11110000 iiiii 0 0000 1 nnnnn ddddd", "01 . 11110000 iiiii 0 .... 1 nnnnn ddddd"],
    ),
    encodings("scalar, three same", 8, &["01 . 11110 .. 1 mmmmm ..... 1 nnnnn ddddd"]),
    encodings(
        "scalar, three same, extra",
        2,
        &["01 1 11110 .. 0 mmmmm 1 000. 1 nnnnn ddddd", "01 . 11110 .. 0 mmmmm 1 .... 1 nnnnn ddddd"],
    ),
    encodings(
        "scalar, half precision",
        1,
        &["01 . 11110 . 10 mmmmm 00 ... 1 nnnnn ddddd", "01 . 11110 . 111100 ..... 10 nnnnn ddddd"],
    ),
    encodings("scalar, three different", 3, &["01 . 11110 .. 1 mmmmm .... 00 nnnnn ddddd"]),
    encodings("scalar, two register miscellaneous", 8, &["01 . 11110 .. 10000 ..... 10 nnnnn ddddd"]),
    encodings(
        "scalar, pairwise",
        4,
        &[
            "01 . 11110 .. 11000 ..... 10 nnnnn ddddd",
            "01 1 11110 .. 11000 011.. 10 nnnnn ddddd",
            "01 0 11110 11 11000 11011 10 nnnnn ddddd",
        ],
    ),
    encodings(
        "scalar, shift by immediate",
        8,
        &[
            "01 . 111110 iiiiiii ..... 1 nnnnn ddddd",
            "01 . 111110 1iiiiii 0...0 1 nnnnn ddddd",
            "01 . 111110 iiiiiii 0111. 1 nnnnn ddddd",
            "01 . 111110 0iiiiii 100.. 1 nnnnn ddddd",
            "01 . 111110 .1iiiii 111.. 1 nnnnn ddddd",
        ],
    ),
    encodings("scalar, indexed element", 6, &["01 . 11111 .. . mmmmm .... . 0 nnnnn ddddd"]),
    encodings(
        "table lookup",
        3,
        &["0. 001110 00 0 mmmmm 0 .. . 00 nnnnn ddddd", "0. 001110 .. 0 mmmmm 0 .. . 00 nnnnn ddddd"],
    ),
    encodings("permute", 4, &["0. 001110 .. 0 mmmmm 0 ... 10 nnnnn ddddd"]),
    encodings(
        "vector extract",
        2,
        &["0. 101110 00 0 mmmmm 0 iiii 0 nnnnn ddddd", "0. 101110 .. 0 mmmmm 0 iiii 0 nnnnn ddddd"],
    ),
    encodings(
        "vector copy",
        5,
        &[
            "0. . 01110000 iiiii 0 .... 1 nnnnn ddddd",
            "0. 0 01110000 iiiii 0 00.1 1 nnnnn ddddd",
            "0. 0 01110000 iiiii 0 01.1 1 nnnnn ddddd",
        ],
    ),
    encodings(
        "vector, three same",
        24,
        &["0. . 01110 .. 1 mmmmm ..... 1 nnnnn ddddd", "0. . 01110 .. 1 mmmmm 11... 1 nnnnn ddddd"],
    ),
    encodings(
        "vector, three same, extra",
        6,
        &[
            "0. . 01110 .. 0 mmmmm 1 .... 1 nnnnn ddddd",
            "0. 1 01110 1. 0 mmmmm 1 1... 1 nnnnn ddddd",
            "0. . 01110 10 0 mmmmm 1 0010 1 nnnnn ddddd",
        ],
    ),
    encodings(
        "vector, half precision",
        1,
        &["0. . 01110 . 10 mmmmm 00 ... 1 nnnnn ddddd", "0. . 01110 . 111100 ..... 10 nnnnn ddddd"],
    ),
    encodings("vector, two register miscellaneous", 20, &["0. . 01110 .. 10000 ..... 10 nnnnn ddddd"]),
    encodings(
        "vector, across lanes",
        5,
        &["0. . 01110 .. 11000 ..... 10 nnnnn ddddd", "0. 1 01110 .. 11000 011.. 10 nnnnn ddddd"],
    ),
    encodings("vector, three different", 10, &["0. . 01110 .. 1 mmmmm .... 00 nnnnn ddddd"]),
    encodings(
        "vector, modified immediate",
        4,
        &["0. . 0111100000 iii cccc . 1 iiiii ddddd", "0. . 0111100000 iii cccc 01 iiiii ddddd"],
    ),
    encodings(
        "vector, shift by immediate",
        14,
        &[
            "0. . 011110 iiiiiii ..... 1 nnnnn ddddd",
            "0. . 011110 iiiiiii 0...0 1 nnnnn ddddd",
            "0. . 011110 0iiiiii 100.. 1 nnnnn ddddd",
            "0. . 011110 0iiiiii 10100 1 nnnnn ddddd",
            "0. . 011110 .1iiiii 11100 1 nnnnn ddddd",
            "0. . 011110 .1iiiii 11111 1 nnnnn ddddd",
        ],
    ),
    encodings("vector, indexed element", 12, &["0. . 01111 .. . mmmmm .... . 0 nnnnn ddddd"]),
    encodings(
        "fp and advanced simd, any",
        8,
        &["... 1111 .........................", "0.. 0111 ........................."],
    ),
];
