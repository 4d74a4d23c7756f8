//! Which rows go to which expert.

/// Pairs of row and choice, grouped by expert. A pair's number is `row * experts_used + rank`.
#[derive(Default)]
pub struct Routing {
    /// First place in `pairs` of each expert, and the end.
    starts: Vec<u32>,
    pairs: Vec<u32>,
    /// Experts that have rows.
    active: Vec<u32>,
}

impl Routing {
    /// Room for `pairs` pairs.
    pub fn new(experts: usize, pairs: usize) -> Routing {
        Routing {
            starts: vec![0; experts + 1],
            pairs: vec![0; pairs],
            active: Vec::with_capacity(experts),
        }
    }

    /// Bytes that it has taken.
    #[cfg(test)]
    pub fn allocated(&self) -> usize {
        let values = self.starts.len() + self.pairs.len() + self.active.capacity();
        values * size_of::<u32>()
    }

    /// Groups the pairs whose experts are `choices`, in order, by counting.
    pub fn group(&mut self, choices: &[(u32, f32)]) {
        self.starts.fill(0);
        for &(expert, _) in choices {
            self.starts[expert as usize + 1] += 1;
        }
        self.active.clear();
        for e in 0..self.starts.len() - 1 {
            if self.starts[e + 1] > 0 {
                self.active.push(e as u32);
            }
            self.starts[e + 1] += self.starts[e];
        }
        for (pair, &(expert, _)) in choices.iter().enumerate() {
            let at = &mut self.starts[expert as usize];
            self.pairs[*at as usize] = pair as u32;
            *at += 1;
        }
        // Every start has moved to its end, the next one's start.
        let last = self.starts.len() - 1;
        self.starts.copy_within(0..last, 1);
        self.starts[0] = 0;
    }

    /// Experts that have rows, ascending.
    pub fn active(&self) -> &[u32] {
        &self.active
    }

    /// The pairs of an expert, ascending.
    pub fn pairs(&self, expert: u32) -> &[u32] {
        let e = expert as usize;
        &self.pairs[self.starts[e] as usize..self.starts[e + 1] as usize]
    }
}

/// The `choices.len()` largest router logits, ties to the lower index, weighted by their softmax.
/// Logits that are not numbers count as the smallest.
pub fn choose(logits: &[f32], choices: &mut [(u32, f32)]) {
    for i in 0..choices.len() {
        let mut best = (u32::MAX, f32::NEG_INFINITY);
        for (e, &v) in logits.iter().enumerate() {
            let v = if v.is_nan() { f32::NEG_INFINITY } else { v };
            let taken = choices[..i].iter().any(|c| c.0 == e as u32);
            if !taken && (best.0 == u32::MAX || v > best.1) {
                best = (e as u32, v);
            }
        }
        choices[i] = best;
    }
    let max = choices[0].1;
    let mut sum = 0.0;
    for c in choices.iter_mut() {
        c.1 = if c.1 == max { 1.0 } else { (c.1 - max).exp() };
        sum += c.1;
    }
    choices.iter_mut().for_each(|c| c.1 /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_grouped_by_expert_in_order() {
        let mut routing = Routing::new(4, 6);
        let choices = [(3, 0.1), (1, 0.2), (1, 0.3), (0, 0.4), (3, 0.5), (1, 0.6)];
        for _ in 0..2 {
            routing.group(&choices);
            assert_eq!(routing.active(), [0, 1, 3]);
            assert_eq!(routing.pairs(0), [3]);
            assert_eq!(routing.pairs(1), [1, 2, 5]);
            assert!(routing.pairs(2).is_empty());
            assert_eq!(routing.pairs(3), [0, 4]);
        }
    }

    #[test]
    fn choose_prefers_the_lower_index_and_survives_nan() {
        let mut choices = [(0, 0.0); 2];
        choose(&[1.0, 3.0, 3.0, f32::NAN], &mut choices);
        assert_eq!(choices, [(1, 0.5), (2, 0.5)]);
        choose(&[f32::NAN; 4], &mut choices);
        assert_eq!(choices.map(|c| c.0), [0, 1]);
    }
}
