//! The cryptographic extensions, by the host's: AES-NI, SHA-NI and PCLMULQDQ.

use std::arch::is_x86_feature_detected;

use dynasmrt::DynasmApi;

use super::{Emitter, asm};
use crate::insn::Insn;
use crate::simd::{Crypto, Op, SimdInsn};

/// Exchanges the words of each doubleword: the host's SHA instructions number the state's words the other way.
const EXCHANGE: i8 = 0b10_11_00_01u8.cast_signed();

impl Emitter<'_> {
    /// `None` for what the host has no instruction for.
    pub(super) fn crypto(&mut self, op: Crypto, insn: SimdInsn) -> Option<()> {
        match op {
            Crypto::Aese | Crypto::Aesd | Crypto::Aesmc | Crypto::Aesimc => self.aes(op, insn),
            Crypto::Sha256h | Crypto::Sha256h2 | Crypto::Sha256su0 | Crypto::Sha256su1 => self.sha256(op, insn),
            Crypto::Eor3 => {
                let (n, m, a) = (self.read_vector(insn.rn), self.read_vector(insn.rm), self.read_vector(insn.ra));
                let d = self.write_vector(insn.rd);
                asm!(self ; vpxor xmm0, Rx(n), Rx(m) ; vpxor Rx(d), xmm0, Rx(a));
                Some(())
            }
            Crypto::Bcax => {
                let (n, m, a) = (self.read_vector(insn.rn), self.read_vector(insn.rm), self.read_vector(insn.ra));
                let d = self.write_vector(insn.rd);
                asm!(self ; vpandn xmm0, Rx(a), Rx(m) ; vpxor Rx(d), xmm0, Rx(n));
                Some(())
            }
            _ => None,
        }
    }

    fn aes(&mut self, op: Crypto, insn: SimdInsn) -> Option<()> {
        if !is_x86_feature_detected!("aes") {
            return None;
        }
        let n = self.read_vector(insn.rn);
        match op {
            // AESE adds the key first, the host last: to zero.
            Crypto::Aese | Crypto::Aesd => {
                let d = self.read_vector(insn.rd);
                self.write_vector(insn.rd);
                asm!(self ; vpxor xmm0, Rx(d), Rx(n) ; vpxor xmm1, xmm1, xmm1);
                if op == Crypto::Aese {
                    asm!(self ; vaesenclast Rx(d), xmm0, xmm1);
                } else {
                    asm!(self ; vaesdeclast Rx(d), xmm0, xmm1);
                }
            }
            // The host mixes columns only behind ShiftRows and SubBytes, which their inverses undo.
            Crypto::Aesmc => {
                let d = self.write_vector(insn.rd);
                asm!(self ; vpxor xmm1, xmm1, xmm1 ; vaesdeclast xmm0, Rx(n), xmm1 ; vaesenc Rx(d), xmm0, xmm1);
            }
            _ => {
                let d = self.write_vector(insn.rd);
                asm!(self ; vaesimc Rx(d), Rx(n));
            }
        }
        Some(())
    }

    /// AESE followed by AESMC of the same register is one instruction of the host. `true` if the next instruction is done too.
    pub(super) fn aes_round(&mut self, insn: SimdInsn) -> bool {
        let next = match self.insn(self.at + 1) {
            Some(Insn::Simd(next)) if next.rd == insn.rd && next.rn == insn.rd => next.op,
            _ => return false,
        };
        if !matches!((insn.op, next), (Op::Crypto(Crypto::Aese), Op::Crypto(Crypto::Aesmc)))
            || !is_x86_feature_detected!("aes")
        {
            return false;
        }
        let (n, d) = (self.read_vector(insn.rn), self.read_vector(insn.rd));
        self.write_vector(insn.rd);
        asm!(self ; vpxor xmm0, Rx(d), Rx(n) ; vpxor xmm1, xmm1, xmm1 ; vaesenc Rx(d), xmm0, xmm1);
        true
    }

    fn sha256(&mut self, op: Crypto, insn: SimdInsn) -> Option<()> {
        if !is_x86_feature_detected!("sha") {
            return None;
        }
        let (n, m, d) = (self.read_vector(insn.rn), self.read_vector(insn.rm), self.read_vector(insn.rd));
        self.write_vector(insn.rd);
        match op {
            Crypto::Sha256h | Crypto::Sha256h2 => {
                // Words a–d of the state and e–h.
                let (x, y) = if op == Crypto::Sha256h { (d, n) } else { (n, d) };
                asm!(self
                    ; vpunpcklqdq xmm2, Rx(y), Rx(x)
                    ; vpshufd xmm2, xmm2, EXCHANGE
                    ; vpunpckhqdq xmm1, Rx(y), Rx(x)
                    ; vpshufd xmm1, xmm1, EXCHANGE
                    ; vmovdqa xmm0, Rx(m)
                    ; sha256rnds2 xmm1, xmm2
                    ; vpsrldq xmm0, xmm0, 8
                    ; sha256rnds2 xmm2, xmm1
                );
                if op == Crypto::Sha256h {
                    asm!(self ; vpunpckhqdq Rx(d), xmm2, xmm1);
                } else {
                    asm!(self ; vpunpcklqdq Rx(d), xmm2, xmm1);
                }
                asm!(self ; vpshufd Rx(d), Rx(d), EXCHANGE);
            }
            Crypto::Sha256su0 => asm!(self ; vmovdqa xmm1, Rx(d) ; sha256msg1 xmm1, Rx(n) ; vmovdqa Rx(d), xmm1),
            _ => {
                self.align(1, m, n, 4);
                asm!(self ; vpaddd xmm1, xmm1, Rx(d)
; sha256msg2 xmm1, Rx(m) ; vmovdqa Rx(d), xmm1);
            }
        }
        Some(())
    }
}
