//! Where settings come from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::tree::{Node, Origin};
use crate::{Error, env, file};

/// The file that is read when nobody names one.
const FILE: &str = "antiphon.toml";
/// The variable that names the file.
const FILE_VARIABLE: &str = "ANTIPHON_CONFIG";

/// Where settings come from. Later layers win: [`Self::defaults`], file, environment, [`Self::set`].
#[derive(Clone, Debug, Default)]
pub struct Sources {
    defaults: Option<(PathBuf, String)>,
    file: File,
    variables: Vec<(String, String)>,
    flags: Vec<Flag>,
}

#[derive(Clone, Debug, Default)]
enum File {
    #[default]
    None,
    Search,
    Named(PathBuf),
    Text(PathBuf, String),
}

#[derive(Clone, Debug)]
struct Flag {
    name: String,
    setting: String,
    text: String,
}

impl Sources {
    /// Nothing: every setting has its default.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What a service reads: the file named by `file`, or by `ANTIPHON_CONFIG`, or `antiphon.toml` in
    /// the working directory if it is there; and the environment of the process.
    #[must_use]
    pub fn standard(file: Option<PathBuf>) -> Self {
        let sources = Self::new().environment_os(std::env::vars_os());
        match file {
            Some(path) => sources.file(path),
            None => sources.search(),
        }
    }

    /// A program's own defaults, below everything else, as the text of a settings file. `name` is
    /// what errors call it.
    #[must_use]
    pub fn defaults(mut self, name: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        self.defaults = Some((name.into(), text.into()));
        self
    }

    /// Reads this file, which must be there.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = File::Named(path.into());
        self
    }

    /// Reads the file named by `ANTIPHON_CONFIG`, or else `antiphon.toml` in the working directory if
    /// it is there.
    #[must_use]
    pub fn search(mut self) -> Self {
        self.file = File::Search;
        self
    }

    /// Reads `text` as if it were the content of the file `name`.
    #[must_use]
    pub fn text(mut self, name: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        self.file = File::Text(name.into(), text.into());
        self
    }

    /// Reads these environment variables.
    #[must_use]
    pub fn environment<N, V>(mut self, variables: impl IntoIterator<Item = (N, V)>) -> Self
    where
        N: Into<String>,
        V: Into<String>,
    {
        self.variables.extend(variables.into_iter().map(|(name, text)| (name.into(), text.into())));
        self
    }

    /// Variables that are not text are nobody's settings, unless their name says so; then what is
    /// not text in them is shown as `�` and refused by whoever reads it.
    fn environment_os(self, variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        self.environment(
            variables
                .map(|(name, text)| (lossy(name), lossy(text)))
                .filter(|(name, _)| name.starts_with(env::PREFIX) || name == FILE_VARIABLE),
        )
    }

    /// Sets one setting, above file and environment. `name` is what errors call it: `--listen`.
    #[must_use]
    pub fn set(
        mut self,
        name: impl Into<String>,
        setting: impl Into<String>,
        value: impl ToString,
    ) -> Self {
        let (name, setting) = (name.into(), setting.into());
        self.flags.push(Flag { name, setting, text: value.to_string() });
        self
    }

    /// The file that is read, if there is one: where changes of settings come from.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        match &self.file {
            File::None | File::Text(..) => None,
            File::Named(path) => Some(path.clone()),
            File::Search => {
                let named = self.variables.iter().find(|(name, _)| name == FILE_VARIABLE);
                let named = named.map(|(_, path)| PathBuf::from(path));
                named.or_else(|| Path::new(FILE).exists().then(|| PathBuf::from(FILE)))
            }
        }
    }

    /// All layers, merged.
    pub(crate) fn read(&self) -> Result<Node, Error> {
        let mut tree = match &self.defaults {
            Some((name, text)) => file::parse(name, text)?,
            None => Node::empty(),
        };
        tree.overlay(self.read_file()?);
        tree.overlay(env::parse(
            self.variables.iter().map(|(name, text)| (name.as_str(), text.as_str())),
        )?);
        // One layer each, so that a flag may be given twice and the last one wins.
        for flag in &self.flags {
            let mut layer = Node::empty();
            let path: Vec<String> = flag.setting.split('.').map(str::to_owned).collect();
            layer.put(&path, &flag.text, &Origin::Flag(flag.name.as_str().into()))?;
            tree.overlay(layer);
        }
        Ok(tree)
    }

    fn read_file(&self) -> Result<Node, Error> {
        match &self.file {
            File::None => Ok(Node::empty()),
            File::Text(path, text) => file::parse(path, text),
            File::Named(path) => read(path),
            File::Search => match self.path() {
                Some(path) => read(&path),
                None => Ok(Node::empty()),
            },
        }
    }
}

fn lossy(text: OsString) -> String {
    text.to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<Node, Error> {
    let text = std::fs::read(path).map_err(|error| {
        Error::new(format!("cannot read the settings file {}: {error}", path.display()))
    })?;
    let text = String::from_utf8(text).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::new(format!("{}: not valid UTF-8 (first bad byte at offset {at})", path.display()))
    })?;
    file::parse(path, &text)
}
