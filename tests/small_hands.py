"Hands for tests of the readers: of the shape of a hand, each joint at its own place."

from handlab.hand.skeleton import example_hand


def hand_between(generator, low, high):
    "A right hand (21,3) mm in canonical order, moved to a random place between two points."
    return example_hand(0.0) + generator.uniform(-2, 2, (21, 3)) + generator.uniform(low, high)
