//! Whatever a crash leaves of the last write, recovery decides by the rule of
//! [`tidemill_tests::tail`].

use tidemill_tests::note;
use tidemill_tests::tail::{Counts, Kind, Place, Size, run_seed};

/// Runs of the bounded test.
const SEEDS: u64 = 4;

/// Writes of each category in each run.
const WRITES_EACH: u64 = 1;

#[test]
fn every_image_of_a_torn_tail_is_cut_or_kept_by_the_rule() {
    let mut total = Counts::default();
    for seed in 0..SEEDS {
        match run_seed(seed, WRITES_EACH) {
            Ok(counts) => total += counts,
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
    note::figures(&format!("torn tails: {total}"));
    let images = |is_wanted: &dyn Fn(&tidemill_tests::tail::Category) -> bool| -> u64 {
        let wanted = total.categories.iter().filter(|(category, _)| is_wanted(category));
        wanted.map(|(_, (_, images))| images).sum()
    };
    assert!(images(&|category| category.kind == Kind::Steps) > 1000);
    assert!(images(&|category| category.kind == Kind::Idle) > 100);
    assert!(images(&|category| category.kind == Kind::Seal) > 100);
    assert!(images(&|category| category.place == Place::Fresh) > 100);
    assert!(images(&|category| category.place == Place::Recycled) > 1000);
    assert!(images(&|category| category.place == Place::Torn) > 100);
    assert!(images(&|category| category.is_first) > 100);
    assert!(images(&|category| category.size == Size::Big) > 100);
    for (what, count) in [
        ("whole frames", total.kept),
        ("cut frames", total.cut),
        ("exhaustive writes", total.exhaustive),
        ("recoveries again", total.resealed),
        ("torn seals", total.seals_torn),
        ("later frames", total.refused),
        ("whole shards", total.opened),
    ] {
        assert!(count > 0, "no {what}");
    }
}
