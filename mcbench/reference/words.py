"""The words of the reference world."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _joined(beginnings: str, endings: str) -> tuple[str, ...]:
    return tuple(beginning + ending for beginning in beginnings.split() for ending in endings.split())


WOMEN = _words(
    "anna bella clara dora elsa flora greta hanna irma julia karla lena mara nora olga paula rosa sofia tilda vera"
)
MEN = _words(
    "adam boris conrad daniel emil felix gregor hugo ivan jonas kaspar leon martin nils oscar peter ralf simon "
    "tomas viktor"
)
SURNAMES = _words(
    "abel baxter calder dalton ellis falk garner hale ingram jarvis keller lowell mercer nolan osborn parker "
    "quinn ramsey sutton thorne upton vance walker yates archer barlow carver draper easton fowler graves harlow "
    "irving jordan kendall lambert marlow norton palmer reeves sawyer turner weaver wilder alden bishop conway "
    "drake emerson finch gibson hobbs judson knox lester monroe newell orwell pryor radley sinclair tanner varley "
    "webster"
) + _joined("ash brad clay dun elm far hart kirk lang mar nor oak pen rock stan wad", "by combe croft field ley stead")
CITIES = _words(
    "velmora tamber ostrin calvek doruna ellimar farrow galdis hestia imbria jorvale kelmar lunden marisk nebura "
    "orlane pelisto quarna rendal silvane tormund ulvara vistel wexholm yarrick zandor albeck brenna corvain delphis "
    "estra fenwick grimsel hollin isenby junara korvath lystra mirande norhaven ambral borvik carden drellin eastmere "
    "faldor gorvane harlind ilvora jessom kirnath lorvane morwick nelder osmere pendrel rothar selwyn thalmor umbrin"
)
COUNTRIES = _words("ardia boran celtis drovia elbonia farland gothia hylvania istria jutra kestia lorvia")
RIVERS = _words("ash birch cedar elder hazel iris laurel lotus maple moss myrtle olive pine rowan sage willow")
GOODS = _words("amber cotton leather paper pearls salt silk silver soap steel tea timber tobacco wax wine wool")
JOBS = _words(
    "actor baker barber butcher carpenter cook dancer dentist doctor driver farmer fisher gardener guard hunter "
    "judge lawyer mason miller miner nurse painter pilot poet potter sailor singer smith soldier tailor teacher "
    "writer"
)
FOODS = _words(
    "apples bacon beans beef berries bread butter cabbage cake carrots cheese cherries cream dates eggs figs ham "
    "honey jam lemons lentils melons noodles nuts onions pears peas pie plums porridge rice soup"
)
HOBBIES = _words(
    "banjo bells bugle cello chess clarinet cornet darts dice drum fiddle flute guitar harp horn lute lyre oboe "
    "organ piano pipes trumpet viola whistle"
)
COLOURS = _words("black blue brown cream crimson gold green grey indigo orange pink purple red violet white yellow")
ANIMALS = _words(
    "badger bat bear beetle crane crow deer duck eagle fox frog goat hare heron lizard otter owl rat toad wolf lynx "
    "mole newt quail raven stoat"
)
MARKS = _words(
    "banded bearded crested golden hooded horned pale ringed spotted striped tufted winged dappled dusky hairy lesser "
    "marbled masked plain silver"
)
HABITATS = _words("cave desert forest marsh meadow shore steppe swamp")
DIETS = _words("fish grass insects roots seeds berries")
MONTHS = _words("january february march april may june july august september october november december")
OBJECTS = _words(
    "anchor apron axle barrel basin basket bell belt blanket boat boot bottle bowl box bracelet brick bucket button "
    "cabinet candle cap cart chain chair chest clock coat coin comb cradle crown cup curtain desk dish door drawer "
    "fence flag fork gate glove goblet hat helmet jar kettle key ladle lamp lantern mirror mug oven pillow plate pot "
    "ring scarf shelf statue table vase wheel anvil bench bonnet broom buckle canoe carpet crate cushion dagger drum "
    "easel ferry fiddle flask funnel hinge hoop kite ladder leash loom medal nail napkin paddle parcel pipe quilt "
    "raft saddle sled spoon stool sword tray trunk tub vest wagon"
)
MATERIALS = _words("clay cloth glass iron stone wood bone cork")
TOOLS = _words(
    "axe brush chisel clamp crowbar drill file hammer hook knife lever mallet needle pliers rake rasp rope saw "
    "scissors shovel sieve spade sponge tongs"
)
ACTIONS = _words(
    "bend carry clean cut dry heat join lift mark move open polish press shape split store bore brush bury crush fold "
    "hang lock paint patch pierce raise scrape"
)
PLACES = _words(
    "attic bakery barn cellar chapel garden hall harbour kitchen library market mill office school stable workshop "
    "cloister dairy forge tavern"
)
VERBS = _words(
    "admires borrows buys counts draws drops fills finds hides holds inspects packs paints repairs sells washes"
)
WEATHERS = _words("dark raining snowing windy")
NUMBER_NOUNS = _words(
    "apples beans bells bricks buttons candles cherries coins cups eggs figs keys lemons nuts pears plums rings"
)
