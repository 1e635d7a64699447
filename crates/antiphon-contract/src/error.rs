//! Mistakes in a contract.

use std::fmt;

use crate::model::Location;

/// One mistake in a contract.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContractError {
    /// Where.
    pub location: Location,
    /// What is wrong and, where it can be told, what to write instead.
    pub message: String,
}

impl fmt::Display for ContractError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location, self.message)
    }
}

/// All mistakes in a contract, in the order of the files. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContractErrors(Vec<ContractError>);

impl ContractErrors {
    /// `Ok` when there is no mistake.
    pub(crate) fn check(mut errors: Vec<ContractError>) -> Result<(), Self> {
        if errors.is_empty() {
            return Ok(());
        }
        errors.sort_by(|left, right| left.location.cmp(&right.location));
        errors.dedup();
        Err(Self(errors))
    }

    /// A single mistake that has no place in a file.
    pub(crate) fn unreadable(message: String) -> Self {
        Self(vec![ContractError { location: Location::default(), message }])
    }

    /// The mistakes.
    #[must_use]
    pub fn as_slice(&self) -> &[ContractError] {
        &self.0
    }
}

impl fmt::Display for ContractErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ContractErrors {}

/// The known name that is nearest to a wrong one; `None` when none is near.
#[must_use]
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (distance(wrong, name), name))
        .filter(|(distance, name)| *distance <= wrong.len().max(name.len()) / 3)
        .min()
        .map(|(_, name)| name)
}

/// `; did you mean "x"?`, or nothing.
pub(crate) fn did_you_mean<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(wrong, known).map_or_else(String::new, |name| format!("; did you mean \"{name}\"?"))
}

/// How many characters to insert, delete, replace or swap to get from one text to the other: the
/// optimal string alignment distance.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.to_lowercase().chars().collect();
    let right: Vec<char> = right.to_lowercase().chars().collect();
    let mut before = vec![0; right.len() + 1];
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for row in 1..=left.len() {
        let mut current = vec![row; right.len() + 1];
        for column in 1..=right.len() {
            let cost = usize::from(left[row - 1] != right[column - 1]);
            let mut best =
                (above[column] + 1).min(current[column - 1] + 1).min(above[column - 1] + cost);
            let swapped = row > 1
                && column > 1
                && left[row - 1] == right[column - 2]
                && left[row - 2] == right[column - 1];
            if swapped {
                best = best.min(before[column - 2] + 1);
            }
            current[column] = best;
        }
        before = std::mem::replace(&mut above, current);
    }
    above[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested() {
        let known = ["order_id", "customer_id", "lines"];
        for (wrong, suggestion) in [
            ("ordr_id", "; did you mean \"order_id\"?"),
            ("orderId", "; did you mean \"order_id\"?"),
            ("lnies", "; did you mean \"lines\"?"),
            ("nothing_like_it", ""),
        ] {
            assert_eq!(did_you_mean(wrong, known), suggestion, "{wrong}");
        }
        assert_eq!(did_you_mean("x", []), "");
    }
}
