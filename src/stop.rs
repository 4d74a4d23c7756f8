//! Stop strings in streamed text, for the command line and the server.

/// Passes text through up to the first stop string. What could be the beginning of one is held back
/// until it is decided, so no part of a stop string is ever given out.
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    /// Which of them has come.
    hit: Option<usize>,
}

impl StopStrings {
    /// Stops at whichever of `stops` is complete first; empty ones are ignored.
    pub fn new(stops: &[String]) -> StopStrings {
        StopStrings {
            stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(),
            held: String::new(),
            hit: None,
        }
    }

    /// Whether a stop string has come; nothing passes from then on.
    pub fn hit(&self) -> bool {
        self.hit.is_some()
    }

    /// The stop string that has come.
    pub fn matched(&self) -> Option<&str> {
        Some(self.stops.get(self.hit?)?.as_str())
    }

    /// The text that is certain by now.
    pub fn push(&mut self, text: &str) -> String {
        if self.hit() {
            return String::new();
        }
        self.held.push_str(text);
        // Where two overlap, the one that is complete first: so the cutting makes no difference.
        let found = self.stops.iter().enumerate().filter_map(|(i, stop)| {
            let at = self.held.find(stop.as_str())?;
            Some((at + stop.len(), at, i))
        });
        if let Some((_, at, stop)) = found.min() {
            self.hit = Some(stop);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        // The earliest place from which everything held is the beginning of a stop string.
        let undecided = |tail: &str| self.stops.iter().any(|stop| stop.starts_with(tail));
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let mut places = self
            .held
            .char_indices()
            .map(|(i, _)| i)
            .filter(|&i| i >= from);
        let keep_from = places.find(|&i| undecided(&self.held[i..]));
        let rest = self.held.split_off(keep_from.unwrap_or(self.held.len()));
        std::mem::replace(&mut self.held, rest)
    }

    /// The end of the text: what was held back turned out to be no stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_cutting_gives_the_text_before_the_first_stop(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
        ) {
            let whole: String = pieces.concat();
            let places = stops.iter().filter(|s| !s.is_empty())
                .filter_map(|s| whole.find(s.as_str()).map(|at| (at + s.len(), at)));
            let first = places.min().map(|(_, at)| at);
            let mut filter = StopStrings::new(&stops);
            let mut passed = String::new();
            for piece in &pieces {
                passed += &filter.push(piece);
                // Never more than what will be certain in the end.
                prop_assert!(whole[..first.unwrap_or(whole.len())].starts_with(&passed));
            }
            prop_assert_eq!(filter.hit(), first.is_some());
            prop_assert!(filter.matched().is_none_or(|stop| whole[passed.len()..].starts_with(stop)));
            passed += &filter.finish();
            prop_assert_eq!(passed, &whole[..first.unwrap_or(whole.len())]);
        }
    }

    #[test]
    fn text_that_can_be_no_stop_is_not_held() {
        let mut filter = StopStrings::new(&["\n\n".into(), "END".into()]);
        assert_eq!(filter.push("a\n"), "a");
        assert_eq!(filter.push("b E"), "\nb ");
        assert_eq!(filter.push("N"), "");
        assert_eq!(filter.push("d"), "ENd");
        assert_eq!(filter.push(". END more"), ". ");
        assert_eq!(filter.matched(), Some("END"));
        assert_eq!(filter.push("more"), "");
        assert_eq!(filter.finish(), "");
    }
}
