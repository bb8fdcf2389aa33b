//! What a supervisor asks of a running machine: one JSON object per line, on the socket on which it reads events.
//!
//! Each line is answered by exactly one event, in the order of the lines, so that nothing has to be numbered. A line that
//! makes no sense is answered too: the machine goes on.

use serde::{Deserialize, Serialize};

/// Longest line, without its end. A command is a few words.
pub const MAX_COMMAND_BYTES: usize = 4096;

/// One request. Each variant has fields, if only none: serde refuses unknown fields only of such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Stop all virtual CPUs and devices, and stay. Answered by [`crate::event::Event::Paused`], also if the machine is
    /// paused already.
    Pause {},
    /// Go on. Answered by [`crate::event::Event::Resumed`], also if the machine runs already.
    Resume {},
    /// Tell what the machine is and does. Answered by [`crate::event::Event::Status`].
    Status {},
}

/// Why a line is no command.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is too long to be one.
    #[error("a command is longer than {MAX_COMMAND_BYTES} bytes")]
    TooLong,
    /// It is none of this version.
    #[error("the command makes no sense: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Makes commands of the bytes that arrive.
#[derive(Debug, Default)]
pub struct CommandReader {
    /// The beginning of a line.
    line: Vec<u8>,
    /// The line was told to be too long; its rest is passed over.
    skipping: bool,
}

impl CommandReader {
    /// Takes the next bytes, and returns what they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Result<Command, CommandError>> {
        let mut commands = Vec::new();
        for byte in bytes {
            match byte {
                b'\n' if self.skipping => self.skipping = false,
                b'\n' => commands.push(serde_json::from_slice(&self.line).map_err(CommandError::from)),
                _ if self.skipping => continue,
                _ if self.line.len() == MAX_COMMAND_BYTES => {
                    self.skipping = true;
                    commands.push(Err(CommandError::TooLong));
                }
                _ => {
                    self.line.push(*byte);
                    continue;
                }
            }
            self.line.clear();
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_frozen() {
        for (command, json) in [
            (Command::Pause {}, r#"{"command":"pause"}"#),
            (Command::Resume {}, r#"{"command":"resume"}"#),
            (Command::Status {}, r#"{"command":"status"}"#),
        ] {
            assert_eq!(serde_json::to_string(&command).unwrap(), json);
            assert_eq!(serde_json::from_str::<Command>(json).unwrap(), command);
        }
    }

    #[test]
    fn lines_become_commands_however_they_are_cut() {
        let text = b"{\"command\":\"pause\"}\n{\"command\":\"resume\"}\n{\"command\":";
        let whole: Vec<_> = CommandReader::default().push(text);
        let mut reader = CommandReader::default();
        let cut: Vec<_> = text.iter().flat_map(|byte| reader.push(&[*byte])).collect();
        for commands in [whole, cut] {
            let commands: Vec<_> = commands.into_iter().map(Result::unwrap).collect();
            assert_eq!(commands, [Command::Pause {}, Command::Resume {}]);
        }
    }

    #[test]
    fn nonsense_is_told_once_and_passed_over() {
        let check = |line: &[u8], expected: &str| {
            let mut reader = CommandReader::default();
            let told = reader.push(line);
            let [Err(error)] = told.as_slice() else {
                panic!("{told:?}");
            };
            assert!(error.to_string().contains(expected), "{error}");
            let next = reader.push(b"{\"command\":\"status\"}\n");
            assert!(matches!(next.as_slice(), [Ok(Command::Status {})]), "{next:?}");
        };
        check(b"\n", "no sense");
        check(b"pause\n", "no sense");
        check(b"\xff\xfe\n", "no sense");
        check(b"{\"command\":\"explode\"}\n", "explode");
        check(b"{\"command\":\"pause\",\"gently\":true}\n", "gently");
        check(b"{\"command\":\"pause\"}{\"command\":\"pause\"}\n", "trailing");
        let mut long = vec![b'x'; 3 * MAX_COMMAND_BYTES];
        long.push(b'\n');
        check(&long, "longer than 4096");
    }
}
