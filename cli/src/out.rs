//! Everything that `copepod` writes to its own stdout and stderr goes through here: lines, notes, colours, JSON.
//!
//! The one module that may print. Absent: what is written; commands and [`crate::show`] make the text.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;

/// How our own messages, and the logs of `run`, are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for a person.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The program's two outputs. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    format: Format,
    colour_out: bool,
    colour_err: bool,
}

/// The colours in use: few, and never the only carrier of a meaning.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Colour {
    /// Something went wrong.
    Red,
    /// Worth a look.
    Yellow,
    /// All is well.
    Green,
    /// One of six that tell log prefixes apart.
    Prefix(usize),
}

impl Colour {
    fn code(self) -> u8 {
        // The ANSI colours that are readable on both dark and light grounds.
        const PREFIXES: [u8; 6] = [36, 35, 34, 32, 33, 96];
        match self {
            Self::Red => 31,
            Self::Yellow => 33,
            Self::Green => 32,
            Self::Prefix(n) => PREFIXES[n % PREFIXES.len()],
        }
    }
}

impl Out {
    /// Colours only on terminals, and never with `NO_COLOR`.
    pub(crate) fn new(format: Format) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            format,
            colour_out: wanted && io::stdout().is_terminal(),
            colour_err: wanted && io::stderr().is_terminal(),
        }
    }

    /// How messages are written.
    pub(crate) fn format(self) -> Format {
        self.format
    }

    /// `text` in `colour`, where stdout shows colours.
    pub(crate) fn paint(self, colour: Colour, text: &str) -> String {
        painted(self.colour_out, colour, text)
    }

    /// Writes bytes as they are to stdout.
    pub(crate) fn write(self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    /// Writes bytes as they are to stderr.
    pub(crate) fn write_err(self, bytes: &[u8]) -> io::Result<()> {
        io::stderr().lock().write_all(bytes)
    }

    /// Writes a line to stdout.
    pub(crate) fn line(self, text: &str) -> io::Result<()> {
        self.write(format!("{text}\n").as_bytes())
    }

    /// Tells the user something beside the command's result.
    pub(crate) fn note(self, text: &str) {
        self.message("info", None, text);
    }

    /// Tells the user of something that may need them.
    pub(crate) fn warn(self, text: &str) {
        self.message("warn", Some(Colour::Yellow), text);
    }

    /// Tells the user why the command failed.
    pub(crate) fn error(self, text: &str) {
        self.message("error", Some(Colour::Red), text);
    }

    fn message(self, level: &str, colour: Option<Colour>, text: &str) {
        let line = match (self.format, colour) {
            (Format::Json, _) => serde_json::json!({"level": level, "message": text}).to_string(),
            (Format::Text, None) => text.to_owned(),
            (Format::Text, Some(colour)) => {
                let word = if level == "warn" { "warning:" } else { "error:" };
                format!("{} {text}", painted(self.colour_err, colour, word))
            }
        };
        // Where stderr is gone there is nobody left to tell.
        let _ = self.write_err(format!("{line}\n").as_bytes());
    }
}

fn painted(colours: bool, colour: Colour, text: &str) -> String {
    if colours { format!("\x1b[{}m{text}\x1b[0m", colour.code()) } else { text.to_owned() }
}

/// `text` without what could steer a terminal: it comes from guests and registries.
pub(crate) fn harmless(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// Rows under a header, in columns three spaces apart, as kubectl prints them.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    let header: Vec<_> = header.iter().map(|name| (*name).to_owned()).collect();
    for row in [&header].into_iter().chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 3));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "long name".into()], vec!["bcde".into(), String::new()]];

        assert_eq!(table(&["X", "NAME"], &rows), "X      NAME\na      long name\nbcde\n");
    }

    #[test]
    fn control_characters_of_others_never_reach_the_terminal() {
        assert_eq!(harmless("a\x1b[31mb\r\n\tc"), "a\u{fffd}[31mb\u{fffd}\n\tc");
    }
}
