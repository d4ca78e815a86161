"""Gradient and distribution matching: losses between real and synthetic batches and their exact gradient in the synthetic images.

Plain functions on tensors, in float32 or float64. Batches are class-major, (C, n, ch, H, W): n images of each of C classes. Synthetic
images are those that the network sees, decoded and augmented; the caller pulls the gradient back through that.

    distances.dc_distance(layout, metric="rows" | "mse" | "cos", eps) -> Distance
    distances.idc_distance(layout, metric="mse" | "l1" | "l1_mean" | "cos", bias, fc, eps) -> Distance
    Distance(real, synthetic), (C, P) each -> losses (C,), derivative in the synthetic one (C, P)

    gradients.class_gradients(network, theta, images, labels (C,), chunk) -> (C, P)
    gradients.match(network, theta, real (C, P), images, labels, distance, chunk, frozen) -> losses (C,), image gradient
    gradients.scores(network, theta, real (C, P), images, labels, distance, chunk) -> losses (C,)

    features.mean_features(network, theta, images, chunk) -> (C, F)
    features.match_features(network, theta, real (C, F), images, metric="mse" | "l1", chunk, frozen) -> losses (C,), image gradient

    both.targets(model, theta, images, labels (C,), chunk) -> Targets(gradients (C, P), features (C, F))
    both.match(model, theta, real, images, labels, distance, metric, weight, chunk, frozen) -> losses (C,), image gradient
    both.scores(the same without frozen) -> losses (C,)

    cafe.real_features(model, theta, images, chunk) -> RealFeatures
    cafe.match(model, theta, real, images, weights, factor, chunk, frozen) -> Terms, image gradient
    cafe.score(the same without frozen) -> Terms
    cafe.layer_weights(depth) -> the reference's weights

    memory.class_bytes(model, real, synthetic, frozen, matched="gradients" | "features" | "maps") -> peak bytes for each class in memory

`layout` is `FlatModel.layout`; `network` is a `FlatModel`, which is fastest, or any function of (theta, images) that gives logits, or
for `features` features. `chunk` bounds how many classes are in memory at once. The first `frozen` images of each class are held fixed:
they count in the loss, and the image gradient (C, m - frozen, ch, H, W) is that of the others.
"""
