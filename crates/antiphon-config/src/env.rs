//! The layer of the environment: `ANTIPHON__SERVER__LISTEN` is `server.listen`.

use crate::Error;
use crate::tree::{Node, Origin};

/// What the name of every variable that is a setting begins with.
pub(crate) const PREFIX: &str = "ANTIPHON__";

/// The variable that stands for a setting.
pub(crate) fn variable(setting: &str) -> String {
    format!("{PREFIX}{}", setting.to_ascii_uppercase().replace('.', "__"))
}

/// Reads variables into a tree; those without the prefix are somebody else's.
pub(crate) fn parse<'a>(
    variables: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Node, Error> {
    let mut tree = Node::empty();
    for (name, text) in variables {
        let Some(setting) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let origin = Origin::Environment(name.into());
        let path: Vec<String> = setting.split("__").map(str::to_ascii_lowercase).collect();
        if path.iter().any(String::is_empty) {
            let problem = "not the name of a setting: expected ANTIPHON__SECTION__KEY";
            return Err(Error::new(problem).at(&origin, ""));
        }
        tree.put(&path, text, &origin)?;
    }
    Ok(tree)
}
