//! The assembler of a unit, in two parts: what runs mostly, and what seldom does and would only take the host's caches from it.

use dynasmrt::relocations::Relocation;
use dynasmrt::x64::X64Relocation;
use dynasmrt::{AssemblyOffset, DynamicLabel, DynasmApi, DynasmLabelApi, VecAssembler};

use crate::translate::code_memory::{COLD_ALIGN, Code};

/// Bytes of a displacement: the default of every instruction that refers to a label.
const DISPLACEMENT: usize = 4;

/// As [`VecAssembler`], for dynamic labels. Remembers who refers to whom.
pub(crate) struct Assembler {
    bytes: VecAssembler<X64Relocation>,
    /// Where each label is, by its number.
    labels: Vec<usize>,
    /// Displacements, and the labels that they lead to.
    references: Vec<(usize, DynamicLabel)>,
    /// Where the first part ends and the second begins.
    parts: Option<(usize, usize)>,
}

impl Assembler {
    pub fn new() -> Self {
        Self { bytes: VecAssembler::new(0), labels: Vec::new(), references: Vec::new(), parts: None }
    }

    pub fn new_dynamic_label(&mut self) -> DynamicLabel {
        self.bytes.new_dynamic_label()
    }

    /// What follows is the part that seldom runs.
    pub fn begin_cold(&mut self) {
        let hot = self.here();
        self.bytes.align(COLD_ALIGN, 0);
        self.parts = Some((hot, self.here()));
    }

    /// `None` if a label is missing.
    pub fn finish(self) -> Option<Code> {
        let bytes = self.bytes.finalize().ok()?;
        let (hot, cold) = self.parts.unwrap_or((bytes.len(), bytes.len()));
        let is_cold = |label: DynamicLabel| Some(*self.labels.get(label.get_id())? >= cold);
        let crosses = |(at, label): &(usize, DynamicLabel)| is_cold(*label) != Some(*at >= cold);
        let crossings = self.references.into_iter().filter(crosses).map(|(at, _)| at).collect();
        Some(Code { bytes, hot, cold, crossings })
    }

    fn here(&self) -> usize {
        self.bytes.offset().0
    }
}

impl Extend<u8> for Assembler {
    fn extend<T: IntoIterator<Item = u8>>(&mut self, bytes: T) {
        self.bytes.extend(bytes);
    }
}

impl<'a> Extend<&'a u8> for Assembler {
    fn extend<T: IntoIterator<Item = &'a u8>>(&mut self, bytes: T) {
        self.bytes.extend(bytes);
    }
}

impl DynasmApi for Assembler {
    fn offset(&self) -> AssemblyOffset {
        self.bytes.offset()
    }

    fn push(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    fn align(&mut self, alignment: usize, with: u8) {
        self.bytes.align(alignment, with);
    }
}

impl DynasmLabelApi for Assembler {
    type Relocation = X64Relocation;

    fn dynamic_label(&mut self, id: DynamicLabel) {
        let here = self.here();
        if self.labels.len() <= id.get_id() {
            self.labels.resize(id.get_id() + 1, 0);
        }
        self.labels[id.get_id()] = here;
        self.bytes.dynamic_label(id);
    }

    fn dynamic_relocation(&mut self, id: DynamicLabel, target: isize, field: u8, reference: u8, kind: X64Relocation) {
        debug_assert_eq!(kind.size(), DISPLACEMENT);
        self.references.push((self.here() - usize::from(field), id));
        self.bytes.dynamic_relocation(id, target, field, reference, kind);
    }

    // Nobody uses other labels: they would not be known to cross.
    fn local_label(&mut self, name: &'static str) {
        self.bytes.local_label(name);
    }

    fn global_label(&mut self, name: &'static str) {
        self.bytes.global_label(name);
    }

    fn forward_relocation(&mut self, name: &'static str, target: isize, field: u8, reference: u8, kind: X64Relocation) {
        self.bytes.forward_relocation(name, target, field, reference, kind);
    }

    fn backward_relocation(
        &mut self,
        name: &'static str,
        target: isize,
        field: u8,
        reference: u8,
        kind: X64Relocation,
    ) {
        self.bytes.backward_relocation(name, target, field, reference, kind);
    }

    fn global_relocation(&mut self, name: &'static str, target: isize, field: u8, reference: u8, kind: X64Relocation) {
        self.bytes.global_relocation(name, target, field, reference, kind);
    }

    fn value_relocation(&mut self, value: usize, field: u8, reference: u8, kind: X64Relocation) {
        self.bytes.value_relocation(value, field, reference, kind);
    }
}
