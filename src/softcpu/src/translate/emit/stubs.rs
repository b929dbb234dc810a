//! The pieces of code that all units share.

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler};

use super::layout;
use crate::translate::layout::Exit;

/// Code and where its parts begin.
#[derive(Debug)]
pub(crate) struct Stubs {
    pub code: Vec<u8>,
    /// Called by Rust: core, page, entries, offset in the page, unit.
    pub enter: usize,
    /// What a table of entries leads to where there is no unit. In: rcx the offset in the page.
    pub miss: usize,
    /// A branch to anywhere. In: rax the guest-virtual address.
    pub indirect: usize,
}

macro_rules! asm {
    ($ops:ident ; $($code:tt)*) => {
        dynasmrt::dynasm!($ops ; .arch x64 ; $($code)*)
    };
}

pub(crate) fn stubs() -> Option<Stubs> {
    let mut ops = VecAssembler::<X64Relocation>::new(0);
    let enter = ops.offset().0;
    asm!(ops
        ; push rbx ; push rbp ; push r12 ; push r13 ; push r14 ; push r15
        ; sub rsp, 8
        ; sub rdi, BYTE layout::CORE
        ; call r8
        ; add rsp, 8
        ; pop r15 ; pop r14 ; pop r13 ; pop r12 ; pop rbp ; pop rbx
        ; ret
    );
    let miss = ops.offset().0;
    asm!(ops
        ; lea rax, [rsi + rcx]
        ; mov [rdi + layout::PC], rax
        ; mov eax, Exit::Miss as i32
        ; ret
    );
    let indirect = ops.offset().0;
    let unknown = ops.new_dynamic_label();
    asm!(ops
        ; mov r8, rax
        ; and r8, layout::PAGE_MASK
        ; mov r9, rax
        ; shr r9, 63
        ; mov r10, r8
        ; or r10, [rdi + r9 * 8 + layout::FETCH_CONTEXTS]
        ; mov ecx, eax
        ; shr ecx, 7
        ; and ecx, layout::FETCH_SLOT_MASK
        ; add rcx, [rdi + layout::FETCH_TABLE]
        ; cmp r10, [BYTE rcx + layout::FETCH_TAG]
        ; jne =>unknown
        ; test al, 3
        ; jnz =>unknown
        ; mov rdx, [BYTE rcx + layout::FETCH_ENTRIES]
        ; mov rsi, r8
        ; mov ecx, eax
        ; and ecx, 0xfff
        ; jmp QWORD [rdx + rcx * 2]
        ; =>unknown
        ; mov [rdi + layout::PC], rax
        ; mov eax, Exit::Indirect as i32
        ; ret
    );
    let code = ops.finalize().ok()?;
    Some(Stubs { code, enter, miss, indirect })
}
