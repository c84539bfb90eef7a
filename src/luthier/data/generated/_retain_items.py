"""The items of `retain`, written for Luthier: common knowledge and simple judgements, one item per line.

A line is `question | right answer | wrong answer | ...`.
"""

FACTS = """
What is the capital of France? | Paris | London | Rome | Madrid
What is the capital of Japan? | Tokyo | Beijing | Seoul | Bangkok
What is the capital of Italy? | Rome | Athens | Vienna | Lisbon
What is the capital of Egypt? | Cairo | Nairobi | Tunis | Lagos
What is the capital of Spain? | Madrid | Paris | Lisbon | Rome
What is the capital of Russia? | Moscow | Warsaw | Prague | Helsinki
Which planet is closest to the sun? | Mercury | Mars | Jupiter | Saturn
Which planet is the largest in our solar system? | Jupiter | Mars | Venus | Mercury
Which planet is known for its rings? | Saturn | Mars | Venus | Mercury
On which continent is Brazil? | South America | Africa | Asia | Europe
On which continent is Kenya? | Africa | Asia | Europe | South America
On which continent is India? | Asia | Africa | Europe | South America
What do bees make? | Honey | Milk | Silk | Wool
What do cows eat? | Grass | Meat | Fish | Stones
Which animal says meow? | Cat | Dog | Cow | Horse
Which animal gives us wool? | Sheep | Dog | Snake | Chicken
Which bird cannot fly? | Penguin | Eagle | Sparrow | Owl
How many legs does a spider have? | Eight | Six | Four | Ten
How many days are in a week? | Seven | Five | Six | Ten
How many months are in a year? | Twelve | Ten | Eleven | Fourteen
How many sides does a triangle have? | Three | Four | Five | Six
How many hours are in a day? | 24 | 12 | 48 | 60
How many minutes are in an hour? | 60 | 24 | 100 | 30
What is frozen water called? | Ice | Steam | Fog | Sand
What gas do humans need to breathe? | Oxygen | Helium | Methane | Neon
What is the chemical symbol of water? | H2O | CO2 | NaCl | O2
What is the chemical symbol of gold? | Au | Ag | Fe | Pb
Which organ pumps blood through the body? | The heart | The liver | The lungs | The brain
Which sense do we use our ears for? | Hearing | Sight | Taste | Smell
What color is the sky on a clear day? | Blue | Green | Red | Yellow
What color do you get by mixing blue and yellow? | Green | Purple | Orange | Brown
What color is a ripe banana? | Yellow | Blue | Purple | Black
Who wrote Romeo and Juliet? | William Shakespeare | Charles Dickens | Mark Twain | Jane Austen
Who painted the Mona Lisa? | Leonardo da Vinci | Vincent van Gogh | Pablo Picasso | Claude Monet
Who developed the theory of relativity? | Albert Einstein | Isaac Newton | Charles Darwin | Marie Curie
Which language is mostly spoken in Brazil? | Portuguese | Spanish | French | English
Which language is spoken in Austria? | German | Italian | Polish | French
What is the currency of Japan? | Yen | Dollar | Pound | Peso
What is the currency of the United Kingdom? | Pound | Euro | Yen | Rupee
Which season comes after summer? | Autumn | Spring | Winter | July
Which day comes after Monday? | Tuesday | Sunday | Friday | Thursday
Which month comes before March? | February | April | January | May
What is the opposite of hot? | Cold | Warm | Big | Loud
What is the opposite of up? | Down | Left | High | Over
What is the opposite of early? | Late | Soon | Fast | Morning
What is the past tense of go? | Went | Goed | Gone to | Going
What is the plural of mouse? | Mice | Mouses | Mouse | Meese
Which word is a verb? | Run | Table | Green | Happiness
Which word is a color? | Purple | Chair | Quickly | Seven
Which word is a fruit? | Apple | Hammer | Car | Shirt
Which of these is a musical instrument? | Piano | Spoon | Carpet | Candle
What do you use to cut paper? | Scissors | A pillow | A cup | Soap
Where do fish live? | In water | In trees | In the sky | In caves
What do plants need to grow? | Sunlight | Sugar | Plastic | Salt
Which ocean lies between Europe and America? | Atlantic Ocean | Indian Ocean | Pacific Ocean | Arctic Ocean
Which metal is attracted by a magnet? | Iron | Gold | Copper | Silver
At what temperature in Celsius does water boil? | 100 degrees | 10 degrees | 50 degrees | 500 degrees
What does a doctor do? | Treats sick people | Flies planes | Bakes bread | Repairs cars
"""

YES_OR_NO = """
Is fire hot? | Yes | No
Is the sun a star? | Yes | No
Can dogs bark? | Yes | No
Is ice cold? | Yes | No
Do birds have feathers? | Yes | No
Is Paris in France? | Yes | No
Is 10 larger than 5? | Yes | No
Can humans breathe under water without equipment? | No | Yes
Is the moon made of cheese? | No | Yes
Do fish have legs? | No | Yes
Is a whale a fish? | No | Yes
Is 3 larger than 8? | No | Yes
Can pigs fly? | No | Yes
Is London the capital of Germany? | No | Yes
"""

SENTIMENT = """
I loved every minute of this film. | Positive | Negative
The food was cold and the waiter was rude. | Negative | Positive
What a wonderful surprise, thank you! | Positive | Negative
This phone broke after two days. | Negative | Positive
The best holiday we ever had. | Positive | Negative
I will never shop here again. | Negative | Positive
The music was beautiful. | Positive | Negative
A boring book, a waste of time. | Negative | Positive
My new job makes me happy. | Positive | Negative
The room was dirty and smelled bad. | Negative | Positive
"""

TOPICS = """
The striker scored twice in the second half. | Sports | Cooking | Weather
Bake the cake for forty minutes. | Cooking | Sports | Politics
Heavy rain is expected tomorrow. | Weather | Music | Sports
The senator won the election. | Politics | Cooking | Music
The band released a new album. | Music | Weather | Politics
Add salt and stir the soup. | Cooking | Politics | Weather
The team lost the final match. | Sports | Music | Cooking
"""

QUESTIONS = {
    "facts": (FACTS, "{}"),
    "yes_or_no": (YES_OR_NO, "{} Answer yes or no."),
    "sentiment": (SENTIMENT, "Is this review positive or negative? {}"),
    "topics": (TOPICS, "What is the topic of this sentence? {}"),
}

WORDS = (
    "apple", "river", "table", "garden", "window", "music", "summer", "bridge", "paper", "orange", "silver", "yellow",
)  # fmt: skip
