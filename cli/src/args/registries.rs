//! What can be typed about registries, but for `pull`.

use clap::{ArgAction, Args as ClapArgs};
use rvm_images::RegistryName;

use super::ProgressMode;

pub(super) const PUSH_EXAMPLES: &str = "\
Examples:
  rvm tag app registry.example:5000/team/app:1
  rvm push registry.example:5000/team/app:1
  rvm push -a registry.example:5000/team/app             every tag of it that is here";

pub(super) const LOGIN_EXAMPLES: &str = "\
Examples:
  rvm login                                              at Docker Hub; asks for name and password
  rvm login -u me --password-stdin registry.example:5000 < password

The password goes to the program that credsStore or credHelpers in ~/.docker/config.json name, else into that file.";

#[derive(Debug, ClapArgs)]
pub(crate) struct Push {
    /// Print the name only, and no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Send every tag of the repository that is here
    #[arg(short, long)]
    pub(crate) all_tags: bool,
    /// Whether the registry's certificate has to be valid; false also allows plain HTTP
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, default_value_t = true)]
    pub(crate) tls_verify: bool,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto, value_name = "HOW")]
    pub(crate) progress: ProgressMode,
    /// Name of the image, which says where it goes
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Login {
    /// Name of the user [default: asked for]
    #[arg(short, long)]
    pub(crate) username: Option<String>,
    /// Password, which others can see here [default: asked for]
    #[arg(short, long, conflicts_with = "password_stdin")]
    pub(crate) password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,
    /// Whether the registry's certificate has to be valid; false also allows plain HTTP
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, default_value_t = true)]
    pub(crate) tls_verify: bool,
    /// The registry
    #[arg(default_value = "docker.io")]
    pub(crate) registry: RegistryName,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Logout {
    /// The registry
    #[arg(default_value = "docker.io")]
    pub(crate) registry: RegistryName,
}
