//! From a word as it is written to the fields that a command gets: parameters, substitutions, splitting, patterns of file names.

use std::path::Path;

use brush_parser::word::{
    Parameter, ParameterExpr, ParameterTestType, SpecialParameter, TildeExpr, WordPiece,
    WordPieceWithSource,
};
use glob::{MatchOptions, Pattern};

use super::arithmetic;
use super::shell::Shell;
use crate::places;

/// A letter of an expanded word.
#[derive(Clone, Copy, Debug)]
struct Letter {
    letter: char,
    /// Stands for itself in a pattern.
    quoted: bool,
    /// May end a field, where it is one of IFS.
    splits: bool,
}

/// A part of an expanded word.
#[derive(Clone, Copy, Debug)]
enum Part {
    Letter(Letter),
    /// Quotes, which make a field even where nothing is in them.
    Quotes,
    /// Between two of `"$@"`.
    Border,
    /// `"$@"` of nothing: the quotes around it are none.
    Nothing,
}

type Parts = Vec<Part>;

fn push(parts: &mut Parts, text: &str, quoted: bool, splits: bool) {
    parts.extend(text.chars().map(|letter| Part::Letter(Letter { letter, quoted, splits })));
}

/// Letters that are kept as they are in a pattern.
fn for_pattern(parts: &Parts) -> String {
    let mut pattern = String::new();
    for part in parts {
        if let Part::Letter(it) = part {
            if it.quoted && matches!(it.letter, '*' | '?' | '[' | ']') {
                pattern.extend(['[', it.letter, ']']);
            } else {
                pattern.push(it.letter);
            }
        }
    }
    // What POSIX writes with ! is so here too; ^ is Bash's.
    pattern.replace("[^", "[!")
}

fn plain(parts: &Parts) -> String {
    let letter = |part: &Part| match part {
        Part::Letter(it) => Some(it.letter),
        Part::Border => Some(' '),
        _ => None,
    };
    parts.iter().filter_map(letter).collect()
}

fn compiled(pattern: &str) -> Result<Pattern, String> {
    // A pattern that is none stands for itself.
    Pattern::new(pattern)
        .or_else(|_| Pattern::new(&Pattern::escape(pattern)))
        .map_err(|error| format!("pattern {pattern:?}: {error}"))
}

/// As names of files match.
const IN_NAMES: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

impl Shell {
    /// All fields of these words.
    pub(super) fn fields<'w>(
        &mut self,
        words: impl Iterator<Item = &'w str>,
    ) -> Result<Vec<String>, String> {
        let mut fields = Vec::new();
        for word in words {
            let parts = self.expand(word)?;
            for field in self.split(parts) {
                self.glob(&field, &mut fields)?;
            }
        }
        Ok(fields)
    }

    /// A word that is one, whatever is in it.
    pub(super) fn one(&mut self, word: &str) -> Result<String, String> {
        Ok(plain(&self.expand(word)?))
    }

    /// A text in which only what begins with a dollar or a backquote is replaced.
    pub(super) fn quoted(&mut self, text: &str) -> Result<String, String> {
        if !text.contains(['$', '`', '\\']) {
            return Ok(text.to_owned());
        }
        self.here(text)
    }

    /// A here-document.
    pub(super) fn here(&mut self, text: &str) -> Result<String, String> {
        let pieces = brush_parser::word::parse_heredoc(text, &super::options());
        let pieces = pieces.map_err(|error| error.to_string())?;
        let mut parts = Parts::new();
        self.pieces(&pieces, true, &mut parts)?;
        Ok(plain(&parts))
    }

    /// Whether a value is of a pattern, as in `case`.
    pub(super) fn matches(&mut self, pattern: &str, value: &str) -> Result<bool, String> {
        let pattern = for_pattern(&self.expand(pattern)?);
        Ok(compiled(&pattern)?.matches(value))
    }

    fn expand(&mut self, word: &str) -> Result<Parts, String> {
        let pieces = brush_parser::word::parse(word, &super::options());
        let pieces = pieces.map_err(|error| error.to_string())?;
        let mut parts = Parts::new();
        self.pieces(&pieces, false, &mut parts)?;
        Ok(parts)
    }

    fn pieces(
        &mut self,
        pieces: &[WordPieceWithSource],
        quoted: bool,
        parts: &mut Parts,
    ) -> Result<(), String> {
        for piece in pieces {
            match &piece.piece {
                WordPiece::Text(text) => push(parts, text, quoted, false),
                WordPiece::SingleQuotedText(text) | WordPiece::AnsiCQuotedText(text) => {
                    parts.push(Part::Quotes);
                    push(parts, text, true, false);
                }
                WordPiece::DoubleQuotedSequence(inner)
                | WordPiece::GettextDoubleQuotedSequence(inner) => {
                    parts.push(Part::Quotes);
                    self.pieces(inner, true, parts)?;
                }
                WordPiece::EscapeSequence(text) => match text.strip_prefix('\\') {
                    // The line goes on.
                    Some("\n") => {}
                    Some(letter) => push(parts, letter, true, false),
                    None => push(parts, text, true, false),
                },
                WordPiece::TildeExpansion(TildeExpr::Home) => {
                    let home = self.get("HOME").unwrap_or("/").to_owned();
                    push(parts, &home, true, false);
                }
                WordPiece::TildeExpansion(_) => {
                    return Err("~ stands for HOME only: there are no users".into());
                }
                WordPiece::CommandSubstitution(text) => {
                    let text = self.substitute(text)?;
                    push(parts, &text, quoted, !quoted);
                }
                WordPiece::BackquotedCommandSubstitution(text) => {
                    let text = text.replace("\\`", "`").replace("\\$", "$").replace("\\\\", "\\");
                    let text = self.substitute(&text)?;
                    push(parts, &text, quoted, !quoted);
                }
                WordPiece::ArithmeticExpression(expression) => {
                    let value = arithmetic::value(self, &expression.value)?;
                    push(parts, &value.to_string(), quoted, !quoted);
                }
                WordPiece::ParameterExpansion(expression) => {
                    self.parameter(expression, quoted, parts)?;
                }
            }
        }
        Ok(())
    }

    /// A parameter's value; `$*` and `$@` as one.
    fn look_up(&self, parameter: &Parameter) -> Result<Option<String>, String> {
        let joined = || Some(self.positional.join(" "));
        Ok(match parameter {
            Parameter::Named(name) => self.get(name).map(str::to_owned),
            Parameter::Positional(0) | Parameter::Special(SpecialParameter::ShellName) => {
                Some(self.name.clone())
            }
            Parameter::Positional(number) => self.positional.get(*number as usize - 1).cloned(),
            Parameter::Special(special) => {
                match special {
                    SpecialParameter::AllPositionalParameters { .. } => {
                        if self.positional.is_empty() { None } else { joined() }
                    }
                    SpecialParameter::PositionalParameterCount => {
                        Some(self.positional.len().to_string())
                    }
                    SpecialParameter::LastExitStatus => Some(self.status.to_string()),
                    SpecialParameter::CurrentOptionFlags => Some(self.options.flags()),
                    // A guest is one program, and its own first.
                    SpecialParameter::ProcessId => Some("1".into()),
                    SpecialParameter::LastBackgroundProcessId => None,
                    SpecialParameter::ShellName => Some(self.name.clone()),
                }
            }
            _ => return Err("arrays are Bash's: write several variables".into()),
        })
    }

    fn parameter(
        &mut self,
        expression: &ParameterExpr,
        quoted: bool,
        parts: &mut Parts,
    ) -> Result<(), String> {
        use ParameterExpr as Expr;
        let test = |shell: &Self, parameter: &Parameter, kind: &ParameterTestType| {
            let value = shell.look_up(parameter)?;
            Ok::<_, String>(match kind {
                ParameterTestType::Unset => value,
                ParameterTestType::UnsetOrNull => value.filter(|value| !value.is_empty()),
            })
        };
        let value = match expression {
            Expr::Parameter { parameter, indirect: false } => {
                if let Parameter::Special(SpecialParameter::AllPositionalParameters {
                    concatenate,
                }) = parameter
                {
                    self.all_positional(*concatenate, quoted, parts);
                    return Ok(());
                }
                let value = self.look_up(parameter)?;
                if value.is_none() && self.options.no_unset {
                    return Err(format!("{}: is not set", bare(parameter)));
                }
                value.unwrap_or_default()
            }
            Expr::UseDefaultValues { parameter, indirect: false, test_type, default_value } => {
                match test(self, parameter, test_type)? {
                    Some(_) if is_all(parameter) => {
                        return self.parameter(
                            &Expr::Parameter { parameter: parameter.clone(), indirect: false },
                            quoted,
                            parts,
                        );
                    }
                    Some(value) => value,
                    None => return self.operand(default_value.as_deref(), quoted, parts),
                }
            }
            Expr::AssignDefaultValues { parameter, indirect: false, test_type, default_value } => {
                match test(self, parameter, test_type)? {
                    Some(value) => value,
                    None => {
                        let value = self.one(default_value.as_deref().unwrap_or_default())?;
                        let Parameter::Named(name) = parameter else {
                            return Err(format!("{}: cannot be set so", bare(parameter)));
                        };
                        self.set(name, value.clone())?;
                        value
                    }
                }
            }
            Expr::IndicateErrorIfNullOrUnset {
                parameter,
                indirect: false,
                test_type,
                error_message,
            } => match test(self, parameter, test_type)? {
                Some(value) => value,
                None => {
                    let why = match error_message {
                        Some(word) => self.one(word)?,
                        None => "is not set".into(),
                    };
                    return Err(format!("{}: {why}", bare(parameter)));
                }
            },
            Expr::UseAlternativeValue {
                parameter,
                indirect: false,
                test_type,
                alternative_value,
            } => match test(self, parameter, test_type)? {
                Some(_) => return self.operand(alternative_value.as_deref(), quoted, parts),
                None => String::new(),
            },
            Expr::ParameterLength { parameter, indirect: false } => {
                if is_all(parameter) {
                    self.positional.len().to_string()
                } else {
                    self.look_up(parameter)?.unwrap_or_default().chars().count().to_string()
                }
            }
            Expr::RemoveSmallestSuffixPattern { parameter, indirect: false, pattern } => {
                self.without(parameter, pattern.as_deref(), End::Suffix, false)?
            }
            Expr::RemoveLargestSuffixPattern { parameter, indirect: false, pattern } => {
                self.without(parameter, pattern.as_deref(), End::Suffix, true)?
            }
            Expr::RemoveSmallestPrefixPattern { parameter, indirect: false, pattern } => {
                self.without(parameter, pattern.as_deref(), End::Prefix, false)?
            }
            Expr::RemoveLargestPrefixPattern { parameter, indirect: false, pattern } => {
                self.without(parameter, pattern.as_deref(), End::Prefix, true)?
            }
            _ => return Err("this expansion is Bash's, and not POSIX's".into()),
        };
        push(parts, &value, quoted, !quoted);
        Ok(())
    }

    /// The word of `${name:-word}`, which has quotes of its own.
    fn operand(
        &mut self,
        word: Option<&str>,
        quoted: bool,
        parts: &mut Parts,
    ) -> Result<(), String> {
        let expanded = self.expand(word.unwrap_or_default())?;
        parts.extend(expanded.into_iter().map(|part| match part {
            Part::Letter(it) if quoted => Part::Letter(Letter { quoted, splits: false, ..it }),
            // Only what was written without quotes is split.
            Part::Letter(it) => Part::Letter(Letter { splits: it.splits || !it.quoted, ..it }),
            other => other,
        }));
        Ok(())
    }

    fn all_positional(&mut self, concatenate: bool, quoted: bool, parts: &mut Parts) {
        if quoted && concatenate {
            let between = self.get("IFS").map_or(Some(' '), |ifs| ifs.chars().next());
            let between = between.map(String::from).unwrap_or_default();
            let text = self.positional.join(&between);
            push(parts, &text, true, false);
            return;
        }
        if self.positional.is_empty() {
            parts.push(Part::Nothing);
        }
        for (at, value) in self.positional.iter().enumerate() {
            if at > 0 {
                parts.push(Part::Border);
            }
            if quoted {
                parts.push(Part::Quotes);
            }
            push(parts, value, quoted, !quoted);
        }
    }

    fn without(
        &mut self,
        parameter: &Parameter,
        pattern: Option<&str>,
        end: End,
        largest: bool,
    ) -> Result<String, String> {
        let value = self.look_up(parameter)?.unwrap_or_default();
        let pattern = for_pattern(&self.expand(pattern.unwrap_or_default())?);
        let pattern = compiled(&pattern)?;
        let mut cuts: Vec<usize> = value.char_indices().map(|(at, _)| at).collect();
        cuts.push(value.len());
        // The shortest cut first.
        if matches!(end, End::Suffix) != largest {
            cuts.reverse();
        }
        let (mut kept, mut found) = (value.as_str(), false);
        for at in cuts {
            let (before, after) = value.split_at(at);
            let (cut, left) = match end {
                End::Prefix => (before, after),
                End::Suffix => (after, before),
            };
            if !found && pattern.matches(cut) {
                (kept, found) = (left, true);
            }
        }
        Ok(kept.to_owned())
    }

    /// The fields of a word, each still with what is quoted in it.
    fn split(&self, parts: Parts) -> Vec<Vec<Letter>> {
        let ifs = self.get("IFS").unwrap_or(" \t\n");
        let ends = |it: &Letter| it.splits && ifs.contains(it.letter);
        let is_blank = |letter: char| matches!(letter, ' ' | '\t' | '\n');
        let mut fields = Vec::new();
        let (mut field, mut is_field) = (Vec::new(), false);
        let mut nothing = false;
        // The last letter that ended a field was a blank, which one more is no field after.
        let mut after_blank = true;
        for part in parts {
            match part {
                Part::Quotes => is_field = true,
                Part::Nothing => nothing = true,
                Part::Border => {
                    fields.push(std::mem::take(&mut field));
                    is_field = false;
                    after_blank = true;
                }
                Part::Letter(it) if ends(&it) => {
                    let blank = is_blank(it.letter);
                    if is_field || !field.is_empty() || (!blank && !after_blank) {
                        fields.push(std::mem::take(&mut field));
                    }
                    is_field = false;
                    after_blank = blank;
                }
                Part::Letter(it) => {
                    field.push(it);
                    is_field = true;
                    after_blank = true;
                }
            }
        }
        if !field.is_empty() || (is_field && !nothing) {
            fields.push(field);
        }
        fields
    }

    /// The names of files that a field stands for; itself, where there are none.
    fn glob(&self, field: &[Letter], fields: &mut Vec<String>) -> Result<(), String> {
        let text: String = field.iter().map(|it| it.letter).collect();
        let is_pattern = |it: &Letter| !it.quoted && matches!(it.letter, '*' | '?' | '[');
        if self.options.no_glob || !field.iter().any(is_pattern) {
            fields.push(text);
            return Ok(());
        }
        let parts: Parts = field.iter().map(|it| Part::Letter(*it)).collect();
        let pattern = for_pattern(&parts);
        let (start, mut here) = if pattern.starts_with('/') {
            ("/", vec![String::new()])
        } else {
            ("", vec![String::new()])
        };
        let steps: Vec<&str> = pattern.split('/').filter(|step| !step.is_empty()).collect();
        for (at, step) in steps.iter().enumerate() {
            let wanted = compiled(step)?;
            let is_plain = !step.contains(['*', '?', '[']);
            let mut next = Vec::new();
            for before in &here {
                let shown = |name: &str| match before.as_str() {
                    "" => format!("{start}{name}"),
                    before => format!("{before}/{name}"),
                };
                let folder = if before.is_empty() { start.to_owned() } else { before.clone() };
                let folder = places::joined(&self.folder, &folder);
                if is_plain {
                    next.push(shown(step));
                    continue;
                }
                let names = places::names(Path::new(&folder)).unwrap_or_default();
                let matching = names.iter().filter(|name| wanted.matches_with(name, IN_NAMES));
                next.extend(matching.map(|name| shown(name)));
            }
            let is_last = at + 1 == steps.len();
            next.retain(|name| {
                let path = places::joined(&self.folder, name);
                if is_last {
                    places::found(&path, false).is_ok()
                } else {
                    crate::tools::is_folder(&path)
                }
            });
            here = next;
        }
        if here.is_empty() {
            fields.push(text);
        } else {
            fields.extend(here);
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum End {
    Prefix,
    Suffix,
}

fn is_all(parameter: &Parameter) -> bool {
    matches!(parameter, Parameter::Special(SpecialParameter::AllPositionalParameters { .. }))
}

/// A parameter's name in a sentence.
fn bare(parameter: &Parameter) -> String {
    parameter.to_string().trim_matches(['$', '{', '}']).to_owned()
}
