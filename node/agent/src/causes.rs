//! An error for people, with all that led to it.
//!
//! Absent: which errors are told, and to whom.

use std::error::Error;

/// The error and its causes in one line, each as far as it is not in the text already: some errors tell their cause themselves.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failed {
        #[error("it cannot start")]
        Silent { source: std::io::Error },
        #[error("it cannot start: {source}, sadly")]
        Telling { source: std::io::Error },
    }

    #[test]
    fn a_cause_is_told_once_whether_or_not_the_error_tells_it() {
        let disk = || std::io::Error::other("the disk is full");

        let silent = with_causes(&Failed::Silent { source: disk() });
        let telling = with_causes(&Failed::Telling { source: disk() });

        assert_eq!(silent, "it cannot start: the disk is full");
        assert_eq!(telling, "it cannot start: the disk is full, sadly");
    }
}
