//! Errors as one line.

use std::error::Error;

/// `error` and its causes on one line, without the words that a cause repeats.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read it")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn error_is_one_line_with_its_cause() {
        let error = Outer(std::io::Error::other("disk\non fire"));
        assert_eq!(chain(&error), "cannot read it: disk on fire");
    }
}
