//! Which cards are used, and how often.

use std::fmt;
use std::str::FromStr;

/// Cards with weights.
#[derive(Clone, Debug)]
pub(crate) struct Mix(Vec<(String, u32)>);

impl Default for Mix {
    fn default() -> Self {
        let cards = [
            ("tok_ok", 80),
            ("tok_declined", 8),
            ("tok_flaky", 6),
            ("tok_slow", 4),
            ("tok_timeout", 2),
        ];
        Self(cards.map(|(card, weight)| (card.to_owned(), weight)).into())
    }
}

impl Mix {
    /// One card, by the weights.
    pub(super) fn pick(&self, random: &mut fastrand::Rng) -> &str {
        let all: u32 = self.0.iter().map(|(_, weight)| weight).sum();
        let mut left = random.u32(0..all.max(1));
        for (card, weight) in &self.0 {
            if left < *weight {
                return card;
            }
            left -= weight;
        }
        "tok_ok"
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (card, weight)) in self.0.iter().enumerate() {
            write!(f, "{}{card}={weight}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cards: Result<Vec<_>, String> = text
            .split(',')
            .map(|part| {
                let (card, weight) =
                    part.split_once('=').ok_or(format!("`{part}` is not card=weight"))?;
                let weight = weight.parse().map_err(|_| format!("`{weight}` is not a weight"))?;
                Ok((card.to_owned(), weight))
            })
            .collect();
        let cards = cards?;
        if cards.iter().all(|(_, weight)| *weight == 0) {
            return Err("all weights are 0".into());
        }
        Ok(Self(cards))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_decide() {
        let mix: Mix = "tok_ok=1,tok_slow=0".parse().unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        assert!((0..100).all(|_| mix.pick(&mut random) == "tok_ok"));
        assert_eq!(mix.to_string(), "tok_ok=1,tok_slow=0");
        assert!("tok_ok".parse::<Mix>().is_err());
        assert!("tok_ok=0".parse::<Mix>().is_err());
    }
}
