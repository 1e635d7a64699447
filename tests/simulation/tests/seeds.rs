use simulation::{Bites, run};

#[test]
fn one() {
    let mut all = Bites::default();
    for seed in 0..200 {
        match run(seed, None) {
            Ok(bites) => all.add(&bites),
            Err(v) => println!("{v}"),
        }
    }
    println!("{all:?}");
}
