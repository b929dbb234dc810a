//! temporary
use crate::case::Case;
use crate::oracle::{Model, Oracle};
use crate::state::Outcome;

pub struct Subject(Oracle);
impl Subject {
    pub fn new() -> Self {
        let p = Oracle::build().unwrap();
        Self(Oracle::start(&p, Model::Max))
    }
    pub fn run(&mut self, cases: &[&Case]) -> Vec<Outcome> {
        self.0.send(cases.iter().copied());
        self.0.receive(cases.len())
    }
}
