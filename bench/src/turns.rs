//! Turns: those who are compared go one after the other, again and again, so that what else the
//! machine does meets all of them alike.

/// Everybody in the order of turn `turn`, counted from 0: each turn begins with another one, so that
/// nobody always finds the machine as the start of a turn leaves it.
pub fn order<T>(all: &[T], turn: usize) -> impl Iterator<Item = &T> {
    let (before, after) = all.split_at(turn % all.len().max(1));
    after.iter().chain(before)
}

/// The middle one; of an even number the mean of the two in the middle. NaN where there is none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    match (values.get(upper), values.len().is_multiple_of(2)) {
        (Some(value), true) => (values[upper - 1] + value) / 2.0,
        (Some(value), false) => *value,
        (None, _) => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_first_once_and_nobody_is_left_out() {
        let turn = |turn| order(&["a", "b", "c"], turn).copied().collect::<String>();
        assert_eq!([0, 1, 2, 3].map(turn), ["abc", "bca", "cab", "abc"]);
        assert_eq!(order::<u8>(&[], 7).count(), 0);
    }

    #[test]
    fn a_median_takes_no_side() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), 3.0);
        assert!(median(Vec::new()).is_nan());
    }
}
