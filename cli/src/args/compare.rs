//! What can be typed about the two modes side by side.

use clap::{Args as ClapArgs, ValueEnum};

use super::given::Limits;

pub(super) const EXAMPLES: &str = "\
Examples:
  rvm compare debian
  rvm compare -m 256m --cpus 1 debian sh -c 'ls / | wc -l'     also runs a command in both
  rvm compare --explain memory                                 how that row works, with the files and calls involved
  rvm compare --lang ko --explain memory
  rvm compare --format json debian | jq -r '.rows[] | .id, .vm, .container'

The image is run in both modes under the same limits, several times; a kernel is really brought down, a virtual machine's. Rows that
are proxies say so. Nothing of it stays.";

#[derive(Debug, ClapArgs)]
pub(crate) struct Compare {
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// How to print it
    #[arg(long, value_enum, default_value_t = TableFormat::Table)]
    pub(crate) format: TableFormat,
    /// Explain a row instead
    #[arg(long, value_name = "ROW", conflicts_with = "image")]
    pub(crate) explain: Option<String>,
    /// Language of claims and explanations
    #[arg(long, value_enum, default_value_t = Language::En)]
    pub(crate) lang: Language,
    /// Image to compare
    pub(crate) image: Option<String>,
    /// Command and arguments to run in both as well
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TableFormat {
    /// A table as wide as the terminal
    Table,
    /// One JSON object
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    /// English
    En,
    /// Korean
    Ko,
}
