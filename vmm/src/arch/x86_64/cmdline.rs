//! The kernel command line.
//!
//! Parameters of the machine's own devices go in front of a ` -- `, behind which the arguments of init stand.

use super::layout::COMMAND_LINE_BYTES;

/// A command line that the kernel will accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    parameters: String,
    init_arguments: Option<String>,
}

/// Why a command line was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    /// Longer than the kernel reads.
    #[error("the kernel command line has {0} bytes, the kernel reads at most {max}", max = COMMAND_LINE_BYTES - 1)]
    TooLong(usize),
    /// A character that is not printable ASCII.
    #[error("the kernel command line contains {0:?}, which is not printable ASCII")]
    Character(char),
}

impl CommandLine {
    /// Takes over `text`.
    ///
    /// # Errors
    /// [`CommandLineError::Character`]; the length is checked in the end, by [`CommandLine::to_bytes`].
    pub fn new(text: &str) -> Result<Self, CommandLineError> {
        if let Some(character) = text.chars().find(|character| !matches!(character, ' '..='~')) {
            return Err(CommandLineError::Character(character));
        }
        let (parameters, init_arguments) = match text.split_once(" -- ") {
            Some((parameters, arguments)) => (parameters, Some(arguments.to_owned())),
            None => (text, None),
        };
        Ok(Self {
            parameters: parameters.trim().to_owned(),
            init_arguments,
        })
    }

    /// Adds a parameter.
    pub fn add(&mut self, parameter: &str) {
        if !self.parameters.is_empty() {
            self.parameters.push(' ');
        }
        self.parameters.push_str(parameter);
    }

    /// Adds `name=value`, or `name` alone, unless one of the parameters `unless` (or it itself) is there already.
    pub fn add_default(&mut self, parameter: &str, unless: &[&str]) {
        let name = name(parameter);
        if !self
            .parameters
            .split(' ')
            .map(self::name)
            .any(|given| given == name || unless.contains(&given))
        {
            self.add(parameter);
        }
    }

    /// The bytes for the guest, with the final NUL.
    ///
    /// # Errors
    /// [`CommandLineError::TooLong`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, CommandLineError> {
        let mut text = self.parameters.clone();
        if let Some(arguments) = &self.init_arguments {
            text.push_str(" -- ");
            text.push_str(arguments);
        }
        if text.len() >= COMMAND_LINE_BYTES {
            return Err(CommandLineError::TooLong(text.len()));
        }
        let mut bytes = text.into_bytes();
        bytes.push(0);
        Ok(bytes)
    }
}

fn name(parameter: &str) -> &str {
    parameter.split_once('=').map_or(parameter, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_go_in_front_of_the_arguments_of_init() {
        let check = |text: &str, expected: &str| {
            let mut line = CommandLine::new(text).unwrap();
            line.add("virtio_mmio.device=4K@0xd0000000:5");
            line.add_default("panic=-1", &[]);
            line.add_default("quiet", &["loglevel", "debug"]);
            let bytes = line.to_bytes().unwrap();
            assert_eq!(std::str::from_utf8(&bytes).unwrap(), format!("{expected}\0"));
        };
        check("", "virtio_mmio.device=4K@0xd0000000:5 panic=-1 quiet");
        check(
            "panic=1 loglevel=7",
            "panic=1 loglevel=7 virtio_mmio.device=4K@0xd0000000:5",
        );
        check(
            "quiet -- a panic=3",
            "quiet virtio_mmio.device=4K@0xd0000000:5 panic=-1 -- a panic=3",
        );
    }

    #[test]
    fn length_and_characters_are_checked() {
        let line = |length| CommandLine::new(&"x".repeat(length)).unwrap();
        assert_eq!(line(2047).to_bytes().unwrap().len(), 2048);
        assert_eq!(line(2048).to_bytes(), Err(CommandLineError::TooLong(2048)));
        assert_eq!(CommandLine::new("a\nb"), Err(CommandLineError::Character('\n')));
        assert_eq!(CommandLine::new("a\0"), Err(CommandLineError::Character('\0')));
        assert_eq!(CommandLine::new("ä"), Err(CommandLineError::Character('ä')));
    }
}
