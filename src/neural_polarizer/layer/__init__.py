"""The layer: what it computes, where it goes, how it gets into a network and out of it again.

``polarizer`` is the layer and ``structures`` its other forms. ``features`` says what passes through a place, ``sites``
chooses one, ``surgery`` puts the layer there and cuts the network in front of it, and ``folding`` takes it out again
where its neighbours can absorb it.
"""
