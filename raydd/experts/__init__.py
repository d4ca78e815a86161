"""Expert trajectories: training them on real data, and the store that keeps them."""
